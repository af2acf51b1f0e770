//! exploration
use std::fs;
use std::time::{Duration, Instant};
use std::sync::atomic::{AtomicBool, Ordering};
use crate::drivers::{component, hostile};
use crate::support::wasmvol::Wasmvol;

fn kib(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn rounds(wasmvol: &Wasmvol, name: &str, stop: &AtomicBool, most: usize) -> Vec<Duration> {
    let plugin = wasmvol.plugin();
    let mut times = vec![];
    while !stop.load(Ordering::SeqCst) && times.len() < most * 4 {
        for verb in 0..4 {
            let begin = Instant::now();
            match verb {
                0 => plugin.create(name, &[]).unwrap(),
                1 => drop(plugin.mount(name, "id").unwrap()),
                2 => plugin.unmount(name, "id").unwrap(),
                _ => plugin.remove(name).unwrap(),
            }
            times.push(begin.elapsed());
        }
    }
    times.sort();
    times
}
fn at(t: &[Duration], share: usize) -> Duration { t[(t.len() * share / 100).min(t.len()-1)] }

#[test]
fn explore() {
    let wasmvol = Wasmvol::start();
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    wasmvol.cli(&format!("driver load {} --grant http=http://127.0.0.1:9", component("guests/able.wasm").display())).ok();
    let no = AtomicBool::new(false);
    let acts = std::env::var("ACTS").unwrap();
    for act in acts.split(',') {
        let (driver, act) = act.split_once(':').unwrap();
        let quiet = rounds(&wasmvol, "quiet", &no, 300);
        let pid = wasmvol.daemon();
        let before = kib(pid, "VmRSS");
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let done = AtomicBool::new(false);
        let begin = Instant::now();
        let (busy, said) = std::thread::scope(|s| {
            let by = s.spawn(|| rounds(&wasmvol, "by", &done, 100_000));
            let calls: Vec<_> = (0..8).map(|n| { let w = &wasmvol; s.spawn(move || {
                let b = Instant::now();
                let mut r = w.plugin().create(&format!("x{n}"), &[("driver", driver), ("do", act)]);
                if r.is_ok() { r = w.plugin().remove(&format!("x{n}")).map_err(|e| e + " RM") }
                (b.elapsed(), r) }) }).collect();
            let said: Vec<_> = calls.into_iter().map(|c| c.join().unwrap()).collect();
            while begin.elapsed() < Duration::from_secs(2) { std::thread::sleep(Duration::from_millis(10)); }
            done.store(true, Ordering::SeqCst);
            (by.join().unwrap(), said)
        });
        let peak = kib(pid, "VmHWM");
        let after = kib(pid, "VmRSS");
        let longest = said.iter().map(|s| s.0).max().unwrap();
        eprintln!("{driver}:{act} quiet p50 {:?} p99 {:?}; busy n={} p50 {:?} p99 {:?} max {:?}; ratio {:.1}; rss {} -> {} (peak {}) MiB; longest {longest:?}; {}",
            at(&quiet, 50), at(&quiet, 99), busy.len(), at(&busy, 50), at(&busy, 99), busy.last().unwrap(), at(&busy,99).as_secs_f64()/at(&quiet,99).as_secs_f64(),
            before >> 10, after >> 10, peak >> 10, match &said[0].1 { Ok(_) => "ok".to_string(), Err(e) => e.chars().take(200).collect() });
        // what is parked?
        let l = wasmvol.plugin().list();
        if !l.is_empty() { eprintln!("   left: {l:?}"); }
    }
    eprintln!("{}", wasmvol.cli("doctor").stdout);
}
