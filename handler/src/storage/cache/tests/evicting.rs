//! Property test: evictions for a new file, compared with a model.

use crate::{
    observe::CacheMetrics,
    storage::cache::{
        CacheLimits,
        fake_source::location,
        lock::{Lock, LockMode},
        volume::{EntryPaths, EntryRecord, reserve},
    },
};
use proptest::{collection::vec, prelude::*};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

const LIMIT: u64 = 1000;

#[derive(Debug, Clone)]
enum Action {
    Add(u8, u64),
    Use(u8),
    Pin(u8),
    Unpin(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let name = 0..8_u8;
    prop_oneof![
        3 => (name.clone(), 0..1200_u64).prop_map(|(name, bytes)| Action::Add(name, bytes)),
        1 => name.clone().prop_map(Action::Use),
        1 => name.clone().prop_map(Action::Pin),
        1 => name.prop_map(Action::Unpin),
    ]
}

fn paths(folder: &Path, name: u8) -> EntryPaths {
    EntryPaths::new(folder, &format!("{name:064x}"))
}

/// Turns the reserved file into an entry, as a download does, at time `tick`.
fn publish(paths: &EntryPaths, bytes: u64, tick: u64) {
    fs::rename(&paths.partial, &paths.data).unwrap();
    fs::write(&paths.record, serde_json::to_vec(&EntryRecord::new(&location("a"), [0; 32], bytes)).unwrap()).unwrap();
    touch(paths, tick);
}

fn touch(paths: &EntryPaths, tick: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + tick);
    File::options().write(true).open(&paths.record).unwrap().set_modified(time).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_limit_holds_the_least_recently_used_goes_and_what_is_pinned_stays(actions in vec(action(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let limits = CacheLimits { bytes: LIMIT, reserve: 0 };
        // Bytes and last use by name, and the locks of entries that are being read.
        let mut model: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        let mut pins: BTreeMap<u8, Lock> = BTreeMap::new();
        for (tick, action) in actions.into_iter().enumerate() {
            let tick = tick as u64;
            match action {
                Action::Add(name, bytes) if !pins.contains_key(&name) => {
                    let own = paths(folder.path(), name);
                    let lock = Lock::attempt(&own.lock, LockMode::Exclusive).unwrap().unwrap();
                    let reserved = reserve(folder.path(), &own, bytes, limits, &CacheMetrics::default());
                    model.remove(&name);
                    let mut kept: u64 = model.values().map(|(bytes, _)| bytes).sum();
                    let mut by_use: Vec<(u64, u64, u8)> =
                        model.iter().filter(|(name, _)| !pins.contains_key(name)).map(|(n, (b, used))| (*used, *b, *n)).collect();
                    by_use.sort_unstable_by(|one, other| other.cmp(one));
                    while bytes <= LIMIT && kept + bytes > LIMIT {
                        let Some((_, freed, victim)) = by_use.pop() else { break };
                        model.remove(&victim);
                        kept -= freed;
                    }
                    prop_assert_eq!(reserved.is_ok(), kept + bytes <= LIMIT);
                    if reserved.is_ok() {
                        publish(&own, bytes, tick);
                        model.insert(name, (bytes, tick));
                    }
                    drop(lock);
                }
                Action::Use(name) if model.contains_key(&name) => {
                    touch(&paths(folder.path(), name), tick);
                    model.entry(name).and_modify(|(_, used)| *used = tick);
                }
                Action::Pin(name) if model.contains_key(&name) => {
                    let lock = Lock::attempt(&paths(folder.path(), name).lock, LockMode::Shared).unwrap();
                    pins.insert(name, lock.unwrap());
                }
                Action::Unpin(name) => drop(pins.remove(&name)),
                _ => {}
            }
            let mut sum = 0;
            for name in 0..8 {
                let found = fs::metadata(paths(folder.path(), name).data).map(|found| found.len()).ok();
                prop_assert_eq!(found, model.get(&name).map(|(bytes, _)| *bytes), "entry {}", name);
                sum += found.unwrap_or(0);
            }
            prop_assert!(sum <= LIMIT);
        }
    }
}
