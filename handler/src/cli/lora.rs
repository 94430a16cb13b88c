//! `handler lora`.

use crate::cli::options::InspectConfig;
use diffusion::lora::Report;

/// Runs `handler lora inspect` and says whether the file would load.
///
/// # Errors
/// A file that cannot be read, or a model folder that is none.
pub fn inspect(config: &InspectConfig) -> anyhow::Result<bool> {
    let report = Report::of_file(&config.file, config.model.as_deref())?;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.would_load)
}
