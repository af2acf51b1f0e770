//! An engine with a meter knows what each of its calls took, whether there was an answer or not.

use std::time::Duration;

use wasmvol_driver::{Cost, Engine, EngineOptions, Meter};

use crate::stage::{compiler, create, guest, name};

#[test]
fn a_meter_has_the_cost_of_every_call_in_their_order() {
    let (cache, meter) = (tempfile::tempdir().expect("cache"), Meter::default());
    let options =
        EngineOptions { cache: cache.path().to_owned(), compiler: compiler(), calls_max: 4 };
    let engine = Engine::metered(options, meter.clone()).expect("engine");
    let driver = engine.load(&name("hostile"), &guest("hostile"), [].into()).expect("loads");
    let [describe] = &meter.take()[..] else { panic!("one call at load") };
    assert_eq!((describe.deadline, describe.log), (Duration::from_secs(2), 0));
    assert_eq!(describe.answer_max, 1 << 20);
    assert!(describe.time > Duration::ZERO && describe.time < describe.deadline);
    assert!((1 << 16..Cost::MEMORY_MAX / 8).contains(&describe.memory), "{describe:?}");
    create(&driver, "grow").expect_err("too much");
    create(&driver, "log-flood").expect("an answer");
    create(&driver, "loop").expect_err("endless");
    let costs = meter.take();
    let [grow, flood, endless] = &costs[..] else { panic!("three calls: {costs:?}") };
    assert!(grow.memory > Cost::MEMORY_MAX / 2 && grow.memory <= Cost::MEMORY_MAX, "{grow:?}");
    assert_eq!(flood.log, Cost::LOG_MAX);
    assert!(endless.time >= endless.deadline, "{endless:?}");
    assert_eq!(meter.take(), []);
}
