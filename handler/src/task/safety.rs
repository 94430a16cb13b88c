//! What becomes of a picture that the safety checker flags: the modes, from the mildest to the strictest, and what a check found.

use clap::ValueEnum;
use std::{fmt, str::FromStr};

/// What becomes of a picture that the safety checker flags. A later mode is stricter than an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum SafetyMode {
    /// Pictures are not checked.
    #[default]
    Off,
    /// The picture stands, and the verdict is told.
    Flag,
    /// A black picture takes its place, as with the Python worker.
    Black,
    /// No picture of its task is stored, and the task fails.
    Refuse,
}

/// What the check of one picture found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The mode of the check, which is not off.
    pub mode: SafetyMode,
    /// Whether the checker flagged the picture as not safe for work.
    pub nsfw: bool,
}

impl SafetyMode {
    /// All of them, the mildest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::Flag, Self::Black, Self::Refuse];
    /// All names, for an error.
    pub const NAMES: &str = "off, flag, black, refuse";

    /// The name in a task, an option, a log line and a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Flag => "flag",
            Self::Black => "black",
            Self::Refuse => "refuse",
        }
    }
}

impl Checked {
    /// Whether pictures that were checked like this may stand where `mode` holds now: an unflagged picture is the same in every mode, and
    /// a flagged one was treated as strictly as now. Empty are pictures that were not checked.
    pub fn all_stand(checked: &[Self], mode: SafetyMode) -> bool {
        mode == SafetyMode::Off || (!checked.is_empty() && checked.iter().all(|each| !each.nsfw || each.mode >= mode))
    }
}

impl FromStr for SafetyMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("unknown safety mode, known: {}", Self::NAMES))
    }
}

impl fmt::Display for SafetyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SafetyMode::{Black, Flag, Off, Refuse};

    #[test]
    fn names_lead_back_to_the_mode_and_go_from_mild_to_strict() {
        assert_eq!(SafetyMode::ALL.map(SafetyMode::name).join(", "), SafetyMode::NAMES);
        assert!(SafetyMode::ALL.is_sorted() && SafetyMode::default() == Off);
        for mode in SafetyMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(<SafetyMode as ValueEnum>::from_str(mode.name(), false), Ok(mode));
        }
        assert!("Black".parse::<SafetyMode>().is_err_and(|error| error.contains(SafetyMode::NAMES)));
    }

    #[test]
    fn stored_pictures_stand_if_no_stricter_check_holds_now() {
        let one = |mode, nsfw| vec![Checked { mode, nsfw }];
        for (checked, stand_in) in [
            (vec![], vec![Off]),
            (one(Flag, false), vec![Off, Flag, Black, Refuse]),
            (one(Flag, true), vec![Off, Flag]),
            (one(Black, true), vec![Off, Flag, Black]),
            ([one(Black, false), one(Flag, true)].concat(), vec![Off, Flag]),
        ] {
            for mode in SafetyMode::ALL {
                assert_eq!(Checked::all_stand(&checked, mode), stand_in.contains(&mode), "{checked:?} {mode}");
            }
        }
    }
}
