//! The progress of one task, told in order beside the painting, which it never holds up.

use super::{Backend, Subject, WebhookError};
use crate::{task::Task, webhook::progress::Progress};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// How long the end of a task waits for progress that is still on its way.
const PROGRESS_GRACE: Duration = Duration::from_secs(2);

/// The progress of one task. Telling never blocks and never fails.
pub struct ProgressLine {
    sender: mpsc::UnboundedSender<Progress>,
    /// Ends with the task: nothing is told of one that was given back meanwhile.
    done: AbortOnDropHandle<()>,
    unwanted: Arc<AtomicBool>,
}

impl ProgressLine {
    /// A handle to tell progress with, from any thread.
    pub fn teller(&self) -> impl Fn(Progress) + Send + use<> {
        let sender = self.sender.clone();
        move |progress| {
            // Nobody listens any more once the task is over.
            let _ = sender.send(progress);
        }
    }

    /// Says, from any thread, whether the backend wants the picture no more.
    pub fn is_unwanted(&self) -> impl Fn() -> bool + Send + use<> {
        let unwanted = self.unwanted.clone();
        move || unwanted.load(Ordering::Relaxed)
    }

    /// Lets what was told go out, so that the backend hears of the end last; gives up on a slow backend.
    pub async fn finish(self) {
        drop(self.sender);
        let mut done = self.done;
        if timeout(PROGRESS_GRACE, &mut done).await.is_err() {
            done.abort();
            // Nothing of the task goes on after this; that it was broken off is known.
            let _ = done.await;
        }
    }
}

impl Backend {
    /// Starts telling the progress of a task, in order, beside the painting. An answer of 409 or 410 says that the
    /// picture is not wanted any more.
    pub fn progress(&self, task: &Task) -> ProgressLine {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Progress>();
        let (backend, subject) = (self.clone(), Subject::task(task));
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = unwanted.clone();
        let telling = async move {
            while let Some(progress) = receiver.recv().await {
                match backend.send(&subject.base, &subject.progress(progress), 0).await {
                    Ok(()) => {}
                    Err(WebhookError::Unwanted { .. }) => {
                        flag.store(true, Ordering::Relaxed);
                        return;
                    }
                    Err(error) => {
                        let generation_id = subject.generation_id;
                        tracing::warn!(%error, generation_id, "progress was not delivered");
                    }
                }
            }
        };
        let done = AbortOnDropHandle::new(tokio::spawn(telling.in_current_span()));
        ProgressLine { sender, done, unwanted }
    }
}
