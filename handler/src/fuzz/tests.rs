//! Runs the targets on their seeds, unchanged and changed at random.

use super::*;
use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use std::fs;

/// Name and content of each seed.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect();
    seeds.sort();
    seeds
}

#[test]
fn seeds_are_taken_or_refused_as_their_names_say() {
    for (target, run) in [("task", task as fn(&[u8]) -> bool), ("lora", lora), ("image", image), ("webhook", webhook)] {
        let seeds = seeds(target);
        for (name, content) in &seeds {
            assert_eq!(run(content), name.starts_with("taken"), "{target} {name}");
        }
        assert!(seeds.iter().any(|(name, _)| name.starts_with("refused")), "{target} has no refused seed");
    }
}

/// One change: some bytes are replaced by a piece of another seed, or by other bytes.
#[derive(Debug, Clone)]
struct Edit {
    at: Index,
    removed: usize,
    piece: Option<(Index, Index, usize)>,
    bytes: Vec<u8>,
}

impl Edit {
    fn any() -> impl Strategy<Value = Self> {
        let piece = proptest::option::of((any::<Index>(), any::<Index>(), 0..40_usize));
        let bytes = vec(prop_oneof![any::<u8>(), proptest::sample::select(b"0129-.:[]{},\"/@e".to_vec())], 0..4);
        let parts = (any::<Index>(), 0..6_usize, piece, bytes);
        parts.prop_map(|(at, removed, piece, bytes)| Self { at, removed, piece, bytes })
    }

    fn apply(&self, content: &mut Vec<u8>, seeds: &[(String, Vec<u8>)]) {
        let at = self.at.index(content.len() + 1);
        let end = content.len().min(at + self.removed);
        let mut new = self.bytes.clone();
        if let Some((seed, from, length)) = &self.piece {
            let (_, other) = &seeds[seed.index(seeds.len())];
            let from = from.index(other.len() + 1);
            new.extend_from_slice(&other[from..other.len().min(from + length)]);
        }
        content.splice(at..end, new);
    }
}

/// Runs a target on changed seeds. The target's own assertions fail.
fn changed(target: &str, run: fn(&[u8]) -> bool) {
    let seeds = seeds(target);
    let config = ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() };
    // The same changes every time; cargo-fuzz looks for new ones.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let ended = runner.run(&(any::<Index>(), vec(Edit::any(), 1..4)), |(seed, edits)| {
        let mut content = seeds[seed.index(seeds.len())].1.clone();
        edits.iter().for_each(|edit| edit.apply(&mut content, &seeds));
        run(&content);
        Ok(())
    });
    if let Err(failure) = ended {
        panic!("{target}: {failure}");
    }
}

#[test]
fn changed_tasks_keep_the_properties() {
    changed("task", task);
}

#[test]
fn changed_loras_keep_the_properties() {
    changed("lora", lora);
}

#[test]
fn changed_pictures_keep_the_properties() {
    changed("image", image);
}

#[test]
fn changed_addresses_keep_the_properties() {
    changed("webhook", webhook);
}
