//! The number of a prompt's weight against Python's `re` and `float`.

use crate::golden_json;
use anyhow::{Context, Result};
use diffusion::prompt::fragments;

#[test]
fn a_weight_is_what_python_takes_for_one() -> Result<()> {
    let goldens = golden_json("prompt-weights.json")?;
    let (mut seen, mut faults) = (0, Vec::new());
    for case in goldens["weights"].as_array().context("weights")? {
        let (text, theirs) = (case[0].as_str().context("a text")?, &case[1]);
        let ours = fragments(&format!("(a:{text})"));
        let expected = match theirs.as_f64() {
            Some(weight) => Some(vec![("a".to_string(), weight)]),
            None if theirs.is_null() => Some(vec![(format!("a:{text}"), 1.1)]),
            None => None,
        };
        if ours != expected {
            faults.push(format!("{text:?}: {ours:?}, not {expected:?}"));
        }
        seen += 1;
    }
    assert!(faults.is_empty() && seen > 700, "{} of {seen} differ:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}
