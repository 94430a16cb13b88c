//! What a model is called: the words that a picture's file uses for it. Never a path, which would tell of the machine.

use crate::storage::weights;
use std::path::Path;

/// Name and revision of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// The repository's name where it is known, else that of the folder.
    pub name: String,
    /// The repository's commit, if it is known.
    pub revision: Option<String>,
}

impl ModelName {
    /// Reads the name off a model folder. Where `handler weights pull` made it, or in a cache of Hugging Face's
    /// (`models--ORG--NAME/snapshots/COMMIT`), it is the repository's, anywhere else the folder's own.
    pub fn of(folder: &Path) -> Self {
        if let Some((name, commit)) = weights::source(folder) {
            return Self { name, revision: Some(commit) };
        }
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.into());
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let own = name(&folder);
        let repository = folder.parent().filter(|parent| name(parent) == "snapshots").and_then(Path::parent).map(name);
        match repository.as_deref().and_then(|repository| repository.strip_prefix("models--")) {
            Some(repository) => Self { name: repository.replace("--", "/"), revision: Some(own) },
            None => Self { name: own, revision: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_without_its_path_and_a_snapshot_by_its_repository() {
        let folder = |path: &str| ModelName::of(Path::new(path));
        let plain = ModelName { name: "sd15".into(), revision: None };
        assert_eq!(folder("/no/such/place/sd15/"), plain);
        assert_eq!(folder("/no/such/snapshots/sd15"), plain);
        let commit = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14";
        let snapshot = folder(&format!("/no/such/hub/models--org--sd-v1-5/snapshots/{commit}"));
        assert_eq!(snapshot, ModelName { name: "org/sd-v1-5".into(), revision: Some(commit.into()) });
    }

    #[test]
    fn a_pulled_folder_is_named_by_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let file = format!(r#"{{"path":"model_index.json","bytes":2,"sha256":"{}"}}"#, "0".repeat(64));
        let manifest =
            format!(r#"{{"repo":"org/sd","revision":"main","commit":"451f4fe1","variant":"full","files":[{file}]}}"#);
        std::fs::write(folder.path().join("easel-weights.json"), manifest).unwrap();
        let expected = ModelName { name: "org/sd".into(), revision: Some("451f4fe1".into()) };
        assert_eq!(ModelName::of(folder.path()), expected);
        std::fs::write(folder.path().join("easel-weights.json"), "{").unwrap();
        assert_eq!(ModelName::of(folder.path()).revision, None, "half a manifest names nothing");
    }
}
