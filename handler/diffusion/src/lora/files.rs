//! A LoRA's file and the `adapter_config.json` beside it, from the path of either the file or its folder.

use super::settings::CONFIG;
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

/// The names that peft and diffusers give the file in a folder.
const NAMES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];
/// The longest `adapter_config.json`, in bytes. peft's have about 1500.
const MAX_CONFIG: u64 = 1 << 20;

/// What belongs to one LoRA.
pub(super) struct Files {
    /// The safetensors file.
    pub path: PathBuf,
    pub file: File,
    /// The text of the `adapter_config.json` beside it, if there is one.
    pub config: Option<String>,
}

impl Files {
    /// Opens the file at `path`, or that of the folder at `path`.
    ///
    /// # Errors
    /// A file that cannot be read; a folder with no file of a known name, and none or several others.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let named = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        let path = if path.is_dir() { in_folder(path).map_err(named(path))? } else { path.to_path_buf() };
        let file = File::open(&path).map_err(named(&path))?;
        let beside = path.with_file_name(CONFIG);
        let config = match File::open(&beside) {
            Ok(config) => Some(text(config).map_err(named(&beside))?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(named(&beside)(error)),
        };
        Ok(Self { path, file, config })
    }
}

/// The LoRA of a folder.
fn in_folder(folder: &Path) -> io::Result<PathBuf> {
    let found = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    if let Some(found) = found {
        return Ok(found);
    }
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let others = entries.into_iter().map(|entry| entry.path());
    let mut others: Vec<_> =
        others.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")).collect();
    let reason = match others.len() {
        1 => return Ok(others.remove(0)),
        0 => format!("no `{}` in it: name the LoRA's file", NAMES[0]),
        count => format!("{count} safetensors files in it, and none is `{}`: name the LoRA's file", NAMES[0]),
    };
    Err(io::Error::new(ErrorKind::NotFound, reason))
}

fn text(config: File) -> io::Result<String> {
    let mut text = String::new();
    config.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("more than {MAX_CONFIG} bytes")));
    }
    Ok(text)
}
