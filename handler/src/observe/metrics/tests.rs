//! What a scrape shows, and that docs/OPERATIONS.md lists it.

use super::*;
use crate::{observe::report::Ending, task::Checked};
use std::{collections::BTreeSet, time::Duration};

#[test]
fn a_task_is_counted_by_its_ending_its_fault_and_its_stages() {
    let metrics = Metrics::default();
    let painted = Report {
        ending: Ending::Painted,
        images_stored: 2,
        bytes_stored: 1000,
        stages: vec![("denoise", Duration::from_millis(400))],
        queue_age: Some(Duration::from_secs(3)),
        loras_found: vec![Found::Volume, Found::Storage],
        checked: [true, false].map(|nsfw| Checked { mode: SafetyMode::Black, nsfw }).to_vec(),
        ..Report::default()
    };
    metrics.record(&painted);
    // What an earlier delivery painted was counted then.
    metrics.record(&Report { ending: Ending::AnnouncedAgain, checked: painted.checked.clone(), ..Report::default() });
    metrics.record(&Report { ending: Ending::Failed, fault: Some(TaskFault::Lora), ..Report::default() });
    let in_work = metrics.start_task();
    let text = metrics.encode().unwrap();
    for line in [
        "easel_tasks_total{ending=\"painted\"} 1",
        "easel_tasks_total{ending=\"failed\"} 1",
        "easel_tasks_total{ending=\"cancelled\"} 0",
        "easel_faults_total{fault=\"LORA_UNUSABLE\"} 1",
        "easel_faults_total{fault=\"OUT_OF_MEMORY\"} 0",
        "easel_lora_lookups_total{found=\"volume\"} 1",
        "easel_lora_lookups_total{found=\"storage\"} 1",
        "easel_lora_lookups_total{found=\"memory\"} 0",
        "easel_lora_evictions_total 0",
        "easel_images_total 2",
        "easel_image_bytes_total 1000",
        "easel_nsfw_pictures_total{action=\"black\"} 1",
        "easel_nsfw_pictures_total{action=\"flag\"} 0",
        "easel_nsfw_pictures_total{action=\"refuse\"} 0",
        "easel_stage_seconds_count{stage=\"denoise\"} 1",
        "easel_stage_seconds_bucket{le=\"0.25\",stage=\"denoise\"} 0",
        "easel_stage_seconds_bucket{le=\"0.5\",stage=\"denoise\"} 1",
        "easel_queue_age_seconds_count 1",
        "easel_task_seconds_count 3",
        "easel_in_work 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    drop(in_work);
    assert!(metrics.encode().unwrap().contains("easel_in_work 0"));
}

#[test]
fn memory_is_shown_where_there_is_a_gpu() {
    let metrics = Metrics::default();
    metrics.set_gpu_memory(None);
    assert!(!metrics.encode().unwrap().contains("easel_gpu_memory_bytes{"));
    assert_eq!(metrics.gpu_memory(), None);
    let memory = Memory { used: 3, total: 5 };
    metrics.set_gpu_memory(Some(memory));
    let text = metrics.encode().unwrap();
    for line in ["easel_gpu_memory_bytes{kind=\"used\"} 3", "easel_gpu_memory_bytes{kind=\"total\"} 5"] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    assert_eq!(metrics.gpu_memory(), Some(memory));
}

#[test]
fn a_gpu_that_cannot_be_used_is_shown() {
    let metrics = Metrics::default();
    let has = |line: &str| metrics.encode().unwrap().lines().any(|shown| shown == line);
    assert!(has("easel_gpu_unused 0"));
    metrics.set_gpu_unused(true);
    assert!(has("easel_gpu_unused 1"));
}

#[test]
fn the_page_for_operators_has_every_metric_of_a_scrape_with_its_type_and_no_other() {
    let metrics = Metrics::default();
    metrics.set_gpu_memory(Some(Memory { used: 1, total: 2 }));
    let text = metrics.encode().unwrap();
    let shown: BTreeSet<String> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(named).collect();
    let page = include_str!("../../../../docs/OPERATIONS.md");
    let rows = page.lines().filter(|line| line.starts_with("| `easel_"));
    let listed: BTreeSet<String> = rows
        .flat_map(|row| {
            let cells: Vec<&str> = row.split(" | ").collect();
            let names = cells[0].split('`').skip(1).step_by(2);
            names.map(|name| format!("{} {}", name.split('{').next().unwrap(), cells[1])).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(shown, listed);
}

/// Name and type as the page has them: the name with the suffix of its series.
fn named(line: &str) -> String {
    let (name, kind) = line.split_once(' ').unwrap();
    let ending = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    format!("{name}{ending} {kind}")
}
