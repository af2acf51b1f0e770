//! What a driver may keep in its store and hear of secrets, and what it tries beyond that.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wasmvol_driver::{Answer, CallError, Created, ErrorCode, Reclaim, Scope, Store};
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{Fault, FaultKind};

use crate::stage::{resident, rogue, rogue_listing, volume_with};

/// What comes of something done in `create`.
fn create(act: &str, with: &str, scope: Scope) -> Result<Answer<Created>, String> {
    let volume = volume_with(act, with);
    let created = rogue().create(volume.id, &volume.name, &volume.options, scope);
    created.map_err(|error| error.to_string())
}

fn state(answer: Answer<Created>) -> String {
    String::from_utf8(answer.value.state).expect("text")
}

#[test]
fn a_store_that_is_flooded_refuses_at_each_limit() {
    for (act, why) in [
        ("store-keys", "number 1024: the store has at most 1024 keys and 1024 KiB"),
        ("store-bytes", "number 63: the store has at most 1024 keys and 1024 KiB"),
        ("store-value", "a value of the store has at most 16 KiB"),
        ("store-key", "a key of the store has 1 to 128 bytes on one line"),
        ("store-line", "a key of the store has 1 to 128 bytes on one line"),
    ] {
        assert_eq!(create(act, "", Scope::default()).expect_err(act), why, "{act}");
    }
}

#[test]
fn what_a_refused_call_wrote_is_not_told() {
    // Its answer is an error: there is nothing of it to be kept.
    create("store-keys", "", Scope::default()).expect_err("over the limit");
    let answer = create("store-full", "", Scope::default()).expect("fits");
    let bytes: usize = answer.uses.writes().values().flatten().map(|value| value.len()).sum();
    assert_eq!((answer.uses.writes().len(), bytes), (60, 60 * (16 << 10)));
}

#[test]
fn deletions_of_what_is_not_there_without_end_write_nothing() {
    let answer = create("store-deletes", "", Scope::default()).expect("nothing is there");
    assert_eq!(answer.uses.writes().len(), 0);
}

#[test]
fn what_a_driver_deletes_of_a_volume_that_its_backend_does_not_know_goes() {
    let store: Store = [("k".to_owned(), Arc::from(*b"v"))].into();
    let scope = Scope { store: Arc::new(store), ..Scope::default() };
    let answer = rogue().remove(&volume_with("remove-unknown", ""), scope).expect("it is gone");
    assert_eq!(answer.value, Reclaim::Delete);
    assert_eq!(answer.uses.writes().get("k"), Some(&None));
}

#[test]
fn a_driver_that_got_no_secret_does_not_know_that_a_volume_is_gone() {
    let nothing = |_: &str, _| Err(Fault::new(FaultKind::Missing, "no secret `key` is kept"));
    let scope = Scope { secrets: Some(Arc::new(nothing)), ..Scope::default() };
    let error = rogue().remove(&volume_with("remove-unrevealed", ""), scope).expect_err("unknown");
    let why = CallError::Failed {
        code: ErrorCode::NotFound,
        message: "no secret `key` is kept".to_owned(),
    };
    assert_eq!(error, why);
}

#[test]
fn questions_without_end_take_no_memory_of_the_hosts() {
    let store: Store = (0..1000).map(|n| (format!("{n:0100}"), Arc::from(*b"v"))).collect();
    let store = Arc::new(store);
    for act in ["store-reads", "store-lists", "store-list"] {
        let driver = rogue_listing(act, "");
        let before = resident();
        let within = Duration::from_secs(1);
        let scope = Scope { store: Arc::clone(&store), ..Scope::default() };
        assert_eq!(driver.list(scope, within), Err(CallError::TimedOut(within)), "{act}");
        // A second of them would be 200 MiB; other tests run beside this one.
        let grown = resident().saturating_sub(before);
        assert!(grown < 128 << 20, "{act}: {grown} bytes more");
    }
}

#[test]
fn only_verbs_that_change_something_write() {
    let error = rogue_listing("store-full", "").list(Scope::default(), Duration::MAX);
    let error = error.expect_err("a list").to_string();
    assert_eq!(error, "number 0: this call may not write to the store");
    let error = rogue().migrate(&volume_with("migrate-write", ""), "0.0.9", Scope::default());
    let error = error.expect_err("a migration").to_string();
    assert_eq!(error, "this call may not write to the store");
}

/// A scope in which `key` is revealed and nothing else, and how often somebody asked.
fn with_secret() -> (Scope, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let scope = Scope {
        secrets: Some(Arc::new(move |name, _| {
            count.fetch_add(1, Ordering::Relaxed);
            match name {
                "key" => Ok(Bytes::new(b"open sesame".to_vec())),
                "host" => Ok(Bytes::new(b"sesame.example".to_vec())),
                _ => Err(Fault::new(FaultKind::Denied, format!("`{name:.20}` is not granted"))),
            }
        })),
        ..Scope::default()
    };
    (scope, asked)
}

#[test]
fn a_secret_is_revealed_by_its_name_and_no_other() {
    assert_eq!(
        create("reveal-one", "key", with_secret().0).map(state).as_deref(),
        Ok("open sesame")
    );
    let error = create("reveal-one", "other", with_secret().0).expect_err("not granted");
    assert_eq!(error, "`other` is not granted");
    let error = create("reveal-probe", "key", with_secret().0).map(state);
    assert_eq!(error.as_deref(), Ok("it was there"));
    let error = create("reveal-one", "key", Scope::default()).expect_err("nobody reveals");
    assert_eq!(error, "no secret is revealed in this call");
}

#[test]
fn no_error_repeats_a_secret_of_an_answer_that_cannot_be_used() {
    let left_out = "what it says is left out, because it holds a part of a secret";
    let broken = CallError::Contract(left_out.to_owned()).to_string();
    for act in ["reveal-directory", "reveal-kind"] {
        assert_eq!(create(act, "key", with_secret().0).expect_err(act), broken, "{act}");
    }
    for act in ["reveal-key", "reveal-id"] {
        let found = rogue_listing(act, "key").list(with_secret().0, Duration::MAX);
        assert_eq!(found.expect_err(act).to_string(), broken, "{act}");
    }
    let directory = tempfile::tempdir().expect("volume");
    let volume = File::open(directory.path()).expect("volume").into();
    let filled = rogue().populate(&volume_with("reveal-program", "key"), volume, with_secret().0);
    assert_eq!(filled.expect_err("no program").to_string(), broken);
    // Nor does one of the host's own, of a request that was not granted.
    let error = create("reveal-ask", "host", with_secret().0).expect_err("not granted");
    assert_eq!(error, "ErrorCode::HttpRequestDenied");
}

#[test]
fn a_call_may_ask_for_few_secrets() {
    let (scope, asked) = with_secret();
    let error = create("reveal-flood", "key", scope).expect_err("a flood");
    assert_eq!(error, "this call has asked for 16 secrets already");
    assert_eq!(asked.load(Ordering::Relaxed), 16);
}

#[test]
fn what_is_refused_has_a_code() {
    let volume = volume_with("store-keys", "");
    let error = rogue().create(volume.id, &volume.name, &volume.options, Scope::default());
    let Err(CallError::Failed { code, .. }) = error else { panic!("{error:?}") };
    // The driver's own: it answers what it likes.
    assert_eq!(code, ErrorCode::Internal);
}
