//! Which of cuBLASLt's algorithms was fastest for each product on this GPU, and which convolutions there were, in a file for the next
//! start.

use super::{
    Gpu, Result, check,
    conv::ConvShape,
    lock,
    matmul::{Algorithm, MatmulShape},
};
use cudarc::{cublaslt::sys as lt, driver::sys};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};
use uuid::Uuid;

/// A file of choices. They hold for one kind of GPU, one driver and one version of the library.
#[derive(Default)]
pub(super) struct Tuned {
    path: Option<PathBuf>,
    known: usize,
}

#[derive(Serialize, Deserialize)]
struct Choices {
    matmuls: Vec<(MatmulShape, Algorithm)>,
    /// Convolutions are not tuned: these are planned ahead.
    convolutions: Vec<ConvShape>,
}

impl Gpu {
    /// From now on a product is tuned at its first run, unless `folder` has the choice; [`Gpu::keep_tuned`] adds it there. Returns
    /// whether there was a file.
    pub(crate) fn tune_with(&self, folder: &Path) -> Result<bool> {
        if !self.has_libraries() {
            // Our own kernels are chosen by their shapes.
            return Ok(true);
        }
        let mut driver = 0;
        // SAFETY: writes one number.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut driver) })?;
        let mut matmuls = self.matmuls()?;
        // SAFETY: takes nothing, and the library is open.
        let library = unsafe { lt::cublasLtGetVersion() };
        let name = self.name().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let path = folder.join(format!("{name}-driver-{driver}-cublaslt-{library}.json"));
        let choices: Option<Choices> = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let found = choices.is_some();
        let (known, convolutions) = choices.map_or_else(Default::default, |known| (known.matmuls, known.convolutions));
        *lock(&self.0.tuned) = Tuned { path: Some(path), known: known.len() };
        known.into_iter().for_each(|(shape, algorithm)| matmuls.prefer(shape, algorithm));
        matmuls.tune_at_first();
        drop(matmuls);
        let gpu = self.clone();
        thread::spawn(move || {
            // A shape that cannot be planned is an error where it is used.
            let plan = |shape: &ConvShape| gpu.convolutions()?.workspace(shape).map(drop);
            gpu.enter().and_then(|()| convolutions.iter().try_for_each(plan))
        });
        Ok(found)
    }

    /// Writes the file anew if something was tuned since. A folder that cannot be written is no error: it is tuned again then.
    pub(crate) fn keep_tuned(&self) -> Result<()> {
        if !self.has_libraries() {
            return Ok(());
        }
        let choices = Choices { matmuls: self.matmuls()?.choices(), convolutions: self.convolutions()?.shapes() };
        let mut tuned = lock(&self.0.tuned);
        let Some(path) = tuned.path.clone().filter(|_| choices.matmuls.len() > tuned.known) else { return Ok(()) };
        tuned.known = choices.matmuls.len();
        let write = || {
            let aside = path.with_extension(Uuid::new_v4().to_string());
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs::write(&aside, serde_json::to_vec(&choices)?)?;
            fs::rename(&aside, &path)
        };
        if let Err(error) = write() {
            tracing::info!(path = %path.display(), %error, "what was tuned cannot be kept");
        }
        Ok(())
    }
}
