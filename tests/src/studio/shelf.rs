//! Pictures and what is known of them on disk, so that the gallery is there again after a restart. Refuses every name that it has
//! not given itself.

use super::record::Record;
use crate::certificates::Authority;
use anyhow::{Context, Result};
use handler::task::Format;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Until when the certificate of a shelf is good.
const YEAR: i32 = 2100;

/// The folder.
#[derive(Debug, Clone)]
pub struct Shelf(PathBuf);

/// Who signs the credentials of a shelf's pictures.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate of who issued it.
    pub authority: PathBuf,
}

impl Shelf {
    /// Makes the folder when it is not there.
    ///
    /// # Errors
    /// The disk.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder.to_path_buf()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All tasks that were kept. A file that cannot be read is left out.
    ///
    /// # Errors
    /// The disk.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = vec![];
        for entry in fs::read_dir(&self.0).with_context(|| self.0.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                records.extend(fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok()));
            }
        }
        Ok(records)
    }

    /// Keeps a task.
    ///
    /// # Errors
    /// The disk.
    pub fn keep(&self, record: &Record) -> Result<()> {
        self.write(&format!("gen_{}.json", record.id), serde_json::to_string_pretty(record)?.as_bytes())
    }

    /// Keeps a picture under the name that ends its address; gives that name.
    ///
    /// # Errors
    /// The disk, or an address that no picture of ours has.
    pub fn keep_picture(&self, url: &str, content: &[u8]) -> Result<String> {
        let name = url.rsplit('/').next().filter(|name| is_picture(name)).context("no picture's address")?;
        self.write(name, content)?;
        Ok(name.to_string())
    }

    /// Where a picture is.
    pub fn picture(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.join(name)).filter(|path| is_picture(name) && path.is_file())
    }

    /// Who signs here: the same as before, so that old pictures can still be checked.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn signer(&self) -> Result<Signer> {
        let folder = self.0.join("authority");
        let file = |name: &str| folder.join(name);
        let signer = Signer { certificate: file("signer.pem"), key: file("signer.key"), authority: file("ca.pem") };
        if !(signer.certificate.is_file() && signer.key.is_file() && signer.authority.is_file()) {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            Authority::new(&folder)?.sign_for_pictures("signer", YEAR)?;
        }
        Ok(signer)
    }

    /// Whole or not at all, even if we die in between.
    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (path, partial) = (self.0.join(name), self.0.join(format!("{name}.partial")));
        fs::write(&partial, content).with_context(|| partial.display().to_string())?;
        fs::rename(&partial, &path).with_context(|| path.display().to_string())
    }
}

/// Whether the function gives such a name to a picture: `gen_`, digits and `_`, and the ending of a format.
fn is_picture(name: &str) -> bool {
    let parts = name.strip_prefix("gen_").and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(number, ending)| {
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
            && Format::ALL.iter().any(|format| format.extension() == ending)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_shelf() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path()).unwrap();
        fs::write(folder.path().join("gen_1.json"), "{}").unwrap();
        let name = shelf.keep_picture("http://s3/bucket/generations/gen_500_2.jpg", b"x").unwrap();
        assert!(shelf.picture(&name).is_some());
        for name in ["gen_1.json", "../gen_1.jpg", "authority/ca.pem", "gen_.jpg", "gen_9.jpg", "", "."] {
            assert!(shelf.picture(name).is_none(), "{name}");
        }
        assert!(shelf.keep_picture("http://s3/..", b"x").is_err());
        assert!(shelf.records().unwrap().is_empty(), "a file that is no task");
    }

    #[test]
    fn a_shelf_keeps_its_signer() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path()).unwrap();
        let read = || fs::read(shelf.signer().unwrap().certificate).unwrap();
        assert_eq!(read(), read());
    }
}
