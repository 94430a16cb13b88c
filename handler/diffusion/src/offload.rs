//! What leaves a GPU while it is not in use: the ways there are, and that none fits into its memory.

/// Whether parts of the networks leave the GPU while they are not in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// The fastest way that fits into the free memory.
    #[default]
    Auto,
    /// Everything stays.
    Never,
    /// Text encoder, UNet and decoder come one at a time.
    Model,
    /// As `Model`, and the UNet's weights pass through a window in each step.
    Sequential,
}

impl Offload {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Model => "model",
            Self::Sequential => "sequential",
        }
    }
}

/// There is no way, or not the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Shortage {
    /// What was asked for.
    pub offload: Offload,
    /// The bytes that it needs.
    pub needed: usize,
    /// The bytes that are free.
    pub free: usize,
    /// The other ways with the bytes that they need, fastest first.
    pub others: Vec<(Offload, usize)>,
}

impl Shortage {
    fn text(&self) -> String {
        let mib = |bytes: usize| format!("{} MiB", bytes.div_ceil(1 << 20));
        let what = match self.offload {
            Offload::Auto => "even --offload sequential".to_string(),
            asked => format!("--offload {}", asked.name()),
        };
        let (needed, free) = (mib(self.needed), mib(self.free));
        let fitting = self.others.iter().find(|(_, needed)| *needed <= self.free);
        let advice = match (fitting, self.others.iter().map(|(_, needed)| *needed).min()) {
            (Some((other, needed)), _) => {
                format!("--offload {} (EASEL_OFFLOAD) needs {} and fits", other.name(), mib(*needed))
            }
            (None, Some(least)) if least < self.needed => {
                format!(
                    "no other way fits, the smallest needs {}; free memory of the GPU, or take a larger one",
                    mib(least)
                )
            }
            _ => "end what else uses the GPU, or take a larger one".into(),
        };
        format!("{what} needs {needed} of the GPU's memory, and {free} are free: {advice}")
    }
}
