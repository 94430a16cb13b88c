//! The reasons why a task fails, and their codes for the backend.

/// The `error_code` of every failure, unless finer codes are configured.
pub const GENERATION_FAILED: &str = "GENERATION_FAILED";

/// Why a task fails. Each reason has a finer `error_code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskFault {
    /// The message is no task, or a field is outside its limits.
    Task,
    /// A LoRA is missing, forbidden, too large, or does not fit the model.
    Lora,
    /// A textual inversion is missing, forbidden, too large, or does not fit the model.
    Inversion,
    /// The picture to begin from is missing, forbidden, too large, or no picture.
    Image,
    /// The picture cannot be painted: its size, its scheduler or the name.
    Picture,
    /// The safety checker flagged a picture, and the mode is refuse.
    Safety,
    /// Painting failed.
    Painting,
    /// The GPU ran out of memory.
    Memory,
    /// S3 failed.
    Storage,
    /// The backend did not take the webhook.
    Backend,
    /// The invocation ended too soon.
    Deadline,
}

impl TaskFault {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Task,
        Self::Lora,
        Self::Inversion,
        Self::Image,
        Self::Picture,
        Self::Safety,
        Self::Painting,
        Self::Memory,
        Self::Storage,
        Self::Backend,
        Self::Deadline,
    ];

    /// The finer code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Task => "TASK_INVALID",
            Self::Lora => "LORA_UNUSABLE",
            Self::Inversion => "TEXTUAL_INVERSION_UNUSABLE",
            Self::Image => "IMAGE_UNUSABLE",
            Self::Picture => "PICTURE_REFUSED",
            Self::Safety => "NSFW_CONTENT",
            Self::Painting => "PAINTING_FAILED",
            Self::Memory => "OUT_OF_MEMORY",
            Self::Storage => "STORAGE_UNAVAILABLE",
            Self::Backend => "BACKEND_UNAVAILABLE",
            Self::Deadline => "DEADLINE_EXCEEDED",
        }
    }
}
