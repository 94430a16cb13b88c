//! Whose picture lies where a task's should: the file's XMP says which generation it was painted for.

use crate::{
    aws::{Aws, IMAGES},
    task::Task,
};
use anyhow::{Context, Result};
use aws_sdk_s3::operation::get_object::GetObjectError;

const OPENS: &[u8] = b"<easel:GenerationId>";

/// What was found of the pictures of tasks, by generation id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pictures {
    /// There is none.
    pub missing: Vec<i64>,
    /// It is another generation's, or does not say whose it is.
    pub of_another_task: Vec<i64>,
}

impl Pictures {
    /// Looks at the picture of each of these tasks.
    ///
    /// # Errors
    /// S3 does not answer.
    pub(super) async fn look(aws: &Aws, tasks: impl Iterator<Item = &Task>) -> Result<Self> {
        let mut found = Self::default();
        for task in tasks {
            let file = match aws.s3.get_object().bucket(IMAGES).key(task.key()).send().await {
                Ok(object) => object.body.collect().await.context("a picture breaks off")?.into_bytes(),
                Err(error) if matches!(error.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => {
                    found.missing.push(task.id());
                    continue;
                }
                Err(error) => return Err(error).context("S3"),
            };
            if owner(&file) != Some(task.id()) || image::load_from_memory(&file).is_err() {
                found.of_another_task.push(task.id());
            }
        }
        Ok(found)
    }
}

/// The generation that a file says it was painted for.
fn owner(file: &[u8]) -> Option<i64> {
    let start = file.windows(OPENS.len()).position(|window| window == OPENS)? + OPENS.len();
    let length = file[start..].iter().position(|&byte| byte == b'<')?;
    std::str::from_utf8(&file[start..start + length]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_whose_it_is_or_nothing() {
        for (file, expected) in [
            ("\u{fffd}..<easel:GenerationId>512</easel:GenerationId>..", Some(512)),
            ("<easel:GenerationId>x</easel:GenerationId>", None),
            ("<easel:GenerationId>512", None),
            ("512", None),
        ] {
            assert_eq!(owner(file.as_bytes()), expected, "{file}");
        }
    }
}
