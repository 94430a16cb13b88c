//! The safety checker's options, the mode that they mean for a model, and what becomes of flagged pictures.

use crate::task::{Checked, SafetyMode};
use clap::Args;
use diffusion::{
    error::PipelineError,
    pipeline::{SafetySource, Verdict},
};
use image::RgbImage;
use std::path::{Path, PathBuf};

/// Which safety checker looks at the pictures, and what becomes of those that it flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Safety checker")]
pub struct CheckerConfig {
    /// What becomes of a picture that the safety checker flags as not safe for work. A task may ask for a stricter mode, never for a
    /// milder one [default: black if the model folder has a checker or --safety-checker names one, else off]
    #[arg(long, env = "EASEL_SAFETY", value_name = "MODE")]
    pub safety: Option<SafetyMode>,
    /// Folder with a safety checker of its own, instead of the model folder's: with safety_checker/ and feature_extractor/ in it, or
    /// with the files of both.
    #[arg(long, env = "EASEL_SAFETY_CHECKER", value_name = "DIR")]
    pub safety_checker: Option<PathBuf>,
}

impl CheckerConfig {
    /// Where a checker comes from, if one is needed.
    pub(crate) fn source(&self) -> SafetySource {
        self.safety_checker.clone().map_or(SafetySource::OfModel, SafetySource::Folder)
    }

    /// What is loaded at the start.
    pub(crate) fn source_at_start(&self) -> SafetySource {
        if self.safety == Some(SafetyMode::Off) { SafetySource::None } else { self.source() }
    }

    /// The mode of a process with a model that has been loaded from [`source_at_start`](Self::source_at_start).
    ///
    /// # Errors
    /// A check is asked for and there is no checker.
    pub(crate) fn mode(&self, has_checker: bool, model: &Path) -> Result<SafetyMode, PipelineError> {
        match (self.safety, has_checker) {
            (None, has_checker) => Ok(if has_checker { SafetyMode::Black } else { SafetyMode::Off }),
            (Some(SafetyMode::Off), _) => Ok(SafetyMode::Off),
            (Some(mode), true) => Ok(mode),
            (Some(mode), false) => Err(PipelineError::ModelFile {
                path: model.into(),
                reason: format!(
                    "it has no safety checker (safety_checker/, named in model_index.json), and --safety (EASEL_SAFETY) is {mode}: bring \
                     one by handler weights pull, name the folder of another by --safety-checker (EASEL_SAFETY_CHECKER), or say --safety \
                     off"
                ),
            }),
        }
    }
}

/// The error of a request that asks for a check where there is no checker.
pub(super) fn no_checker(mode: SafetyMode) -> PipelineError {
    PipelineError::Request {
        field: "safety",
        value: mode.to_string(),
        limit: "this process has no safety checker: leave the field out, or let the operator bring one by handler weights pull or \
                --safety-checker (EASEL_SAFETY_CHECKER)"
            .into(),
    }
}

/// Makes flagged pictures black, unless the mode lets them stand.
pub(super) fn hide(pictures: &mut [RgbImage], verdicts: &[Verdict], mode: SafetyMode) -> Vec<Checked> {
    for (picture, _) in pictures.iter_mut().zip(verdicts).filter(|(_, verdict)| verdict.nsfw) {
        if mode >= SafetyMode::Black {
            *picture = RgbImage::new(picture.width(), picture.height());
        }
    }
    verdicts.iter().map(|verdict| Checked { mode, nsfw: verdict.nsfw }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use SafetyMode::{Black, Flag, Off, Refuse};
    use image::Rgb;

    #[test]
    fn the_mode_is_what_was_asked_for_or_what_the_model_allows() {
        for (asked, has_checker, expected) in [
            (None, true, Some(Black)),
            (None, false, Some(Off)),
            (Some(Off), true, Some(Off)),
            (Some(Off), false, Some(Off)),
            (Some(Flag), true, Some(Flag)),
            (Some(Black), true, Some(Black)),
            (Some(Refuse), true, Some(Refuse)),
            (Some(Flag), false, None),
            (Some(Black), false, None),
            (Some(Refuse), false, None),
        ] {
            let config = CheckerConfig { safety: asked, safety_checker: None };
            match (config.mode(has_checker, "/models/sd15".as_ref()), expected) {
                (Ok(mode), Some(expected)) => assert_eq!(mode, expected, "{asked:?}"),
                (Err(error), None) => {
                    let (words, mode) = (error.to_string(), asked.unwrap());
                    let named = format!("EASEL_SAFETY) is {mode}");
                    for part in ["/models/sd15", &named, "handler weights pull", "EASEL_SAFETY_CHECKER", "--safety off"]
                    {
                        assert!(words.contains(part), "{part} is not in {words}");
                    }
                }
                (mode, expected) => panic!("{asked:?}, checker {has_checker}: {mode:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_folder_of_its_own_comes_before_the_models_and_off_loads_nothing() {
        let folder = || Some(PathBuf::from("checker"));
        let source = |safety, safety_checker| CheckerConfig { safety, safety_checker }.source_at_start();
        assert_eq!(source(None, None), SafetySource::OfModel);
        assert_eq!(source(Some(Refuse), None), SafetySource::OfModel);
        assert_eq!(source(None, folder()), SafetySource::Folder("checker".into()));
        assert_eq!(source(Some(Off), folder()), SafetySource::None);
        let off = CheckerConfig { safety: Some(Off), safety_checker: folder() };
        assert_eq!(off.source(), SafetySource::Folder("checker".into()), "for a task that asks for a check");
    }

    #[test]
    fn flagged_pictures_are_black_where_the_mode_hides_them_and_no_others() {
        let verdict = |nsfw| Verdict { nsfw, concepts: Vec::new(), special_care: Vec::new() };
        let grey = RgbImage::from_pixel(3, 2, Rgb([9, 8, 7]));
        for (mode, is_hidden) in [(Flag, false), (Black, true), (Refuse, true)] {
            let mut pictures = vec![grey.clone(), grey.clone()];
            let checked = hide(&mut pictures, &[verdict(false), verdict(true)], mode);
            assert_eq!(checked, [Checked { mode, nsfw: false }, Checked { mode, nsfw: true }]);
            let black = RgbImage::new(3, 2);
            assert_eq!(pictures, [&grey, if is_hidden { &black } else { &grey }].map(RgbImage::clone), "{mode}");
        }
    }

    #[test]
    fn a_task_that_asks_in_vain_is_told_by_its_field() {
        let error = no_checker(Refuse);
        assert!(matches!(error, PipelineError::Request { .. }), "the task's fault");
        assert!(error.to_string().starts_with("`safety` is refuse, this process has no safety checker"), "{error}");
    }
}
