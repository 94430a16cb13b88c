//! What the function logs of a task's stages. Refuses to measure anything itself.

use handler::observe::report::STAGES;
use serde_json::Value;

/// The stages of a generation and their milliseconds, as last logged; without an id those of the first task.
pub fn stages(log: &str, id: Option<i64>) -> Vec<(String, u64)> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut ends = lines.filter(|line| line["message"] == "task ended");
    let end = match id {
        None => ends.next(),
        Some(_) => ends.rfind(|line| line["span"]["generation_id"].as_i64() == id),
    };
    let stage = |name: &&str| Some((name.to_string(), end.as_ref()?[format!("{name}_ms")].as_u64()?));
    STAGES.iter().filter_map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_generation_counts_and_other_lines_do_not() {
        let line = |id: i64, ms: u64| {
            format!(r#"{{"message":"task ended","denoise_ms":{ms},"span":{{"generation_id":{id}}}}}"#)
        };
        let log = [line(1, 10), "no JSON".to_string(), line(2, 20), line(1, 30)].join("\n");
        let denoise = |ms| vec![("denoise".to_string(), ms)];
        assert_eq!(stages(&log, Some(1)), denoise(30));
        assert_eq!(stages(&log, None), denoise(10));
        assert!(stages(&log, Some(3)).is_empty());
    }
}
