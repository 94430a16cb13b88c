//! What can be at fault, and the code that the backend gets.

/// `error_code` of every failure, unless finer ones are asked for.
pub const GENERATION_FAILED: &str = "GENERATION_FAILED";

/// What is at fault. Each has a code of its own for backends that ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The message: no task, or a field outside its limits.
    Task,
    /// The LoRA: missing, forbidden, too large, or unfit for the model.
    Lora,
    /// The picture that was asked for: a size, scheduler or name that cannot be painted.
    Picture,
    /// The painting itself broke off.
    Painting,
    /// The GPU's memory did not suffice.
    Memory,
    /// S3 did not answer, or refused the upload.
    Storage,
    /// The backend did not take the webhook.
    Backend,
    /// The invocation's time was too short.
    Deadline,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Task,
        Self::Lora,
        Self::Picture,
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
            Self::Picture => "PICTURE_REFUSED",
            Self::Painting => "PAINTING_FAILED",
            Self::Memory => "OUT_OF_MEMORY",
            Self::Storage => "STORAGE_UNAVAILABLE",
            Self::Backend => "BACKEND_UNAVAILABLE",
            Self::Deadline => "DEADLINE_EXCEEDED",
        }
    }
}
