//! The batcher with a fake engine that needs no model and no GPU: what each caller gets when a painting panics or the GPU is lost. That
//! the real engine notices a lost GPU is tested on a GPU.

use super::*;
use crate::{observe::CacheMetrics, picture::ModelName};
use diffusion::{error::PipelineError, noise::Source, prompt::Weighting, schedulers::Kind};
use futures_util::poll;
use std::{task::Poll, time::Duration};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// How a painting ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    Panic,
    Loss,
}

/// An engine whose batches end as the test says.
#[derive(Debug)]
pub(crate) struct Fake {
    begun: mpsc::Sender<usize>,
    ends: mpsc::Receiver<End>,
    is_lost: bool,
}

/// The test's side of a [`Fake`].
#[derive(Debug)]
pub(crate) struct Control {
    /// For each batch that begins: how many requests it has.
    pub(crate) begun: mpsc::Receiver<usize>,
    /// How the batch ends.
    pub(crate) ends: mpsc::Sender<End>,
}

impl Fake {
    pub(crate) fn new() -> (Self, Control) {
        let ((begun, seen), (ends, chosen)) = (mpsc::channel(), mpsc::channel());
        (Self { begun, ends: chosen, is_lost: false }, Control { begun: seen, ends })
    }
}

impl BatchEngine for Fake {
    fn paint_together(&mut self, items: &mut [BatchItem<'_>]) -> Vec<Result<Pictures, EngineError>> {
        self.begun.send(items.len()).unwrap();
        let end = self.ends.recv().unwrap();
        assert_ne!(end, End::Panic, "told to");
        self.is_lost |= end == End::Loss;
        let painted = |_: &mut BatchItem<'_>| match end {
            End::Loss => Err(PipelineError::Candle(candle_core::Error::Msg("an illegal access".into())).into()),
            _ => Ok(Pictures {
                pictures: Vec::new(),
                checked: Vec::new(),
                model: ModelName::of("m".as_ref()),
                warnings: Vec::new(),
                stages: Vec::new(),
            }),
        };
        items.iter_mut().map(painted).collect()
    }

    fn max_batch(&self, _: &Request) -> usize {
        2
    }

    fn memory(&self) -> Option<Memory> {
        None
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn safety(&self) -> SafetyMode {
        SafetyMode::Off
    }
}

fn batcher() -> (Batcher, Control) {
    let (engine, control) = Fake::new();
    (Batcher::start(engine, None, Metrics::new(&CacheMetrics::default())).unwrap(), control)
}

pub(crate) fn generation_request(width: usize) -> Arc<GenerationRequest> {
    let inputs = Request {
        prompt: "a fox".into(),
        negative_prompt: String::new(),
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width,
        height: 512,
        seed: 1,
        steps: 2,
        guidance_scale: 7.5,
        scheduler: Kind::default(),
        karras_sigmas: None,
        noise_source: Source::Cuda,
        start: None,
    };
    Arc::new(GenerationRequest::new(inputs, 1))
}

async fn paint(batcher: &Batcher, width: usize) -> Result<Pictures, BatcherError> {
    batcher
        .paint(
            generation_request(width),
            Box::new(|_, _: &mut Preview<'_>| ControlFlow::Continue(())),
            Stage::begin("wait"),
        )
        .await
}

#[tokio::test]
async fn a_lost_gpu_ends_the_batcher_and_every_waiting_caller_gets_an_error() {
    let (batcher, control) = batcher();
    let (first, second) = (paint(&batcher, 512), paint(&batcher, 512));
    tokio::pin!(first, second);
    assert!(poll!(&mut first).is_pending());
    control.begun.recv_timeout(SOON).unwrap();
    assert!(poll!(&mut second).is_pending());
    assert!(timeout(Duration::ZERO, batcher.ended()).await.is_err());
    control.ends.send(End::Loss).unwrap();
    assert!(matches!(timeout(SOON, first).await.unwrap(), Err(BatcherError::Engine(_))));
    assert!(matches!(timeout(SOON, second).await.unwrap(), Err(BatcherError::Ended)));
    timeout(SOON, batcher.ended()).await.unwrap();
    assert!(matches!(paint(&batcher, 512).await, Err(BatcherError::Ended)));
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_batch_and_the_next_one_is_painted() {
    let (batcher, control) = batcher();
    control.ends.send(End::Panic).unwrap();
    control.ends.send(End::Well).unwrap();
    let broken = timeout(SOON, paint(&batcher, 512)).await.unwrap();
    assert!(matches!(broken, Err(BatcherError::Panic(words)) if words.contains("told to")));
    assert!(timeout(SOON, paint(&batcher, 512)).await.unwrap().is_ok());
}

#[tokio::test]
async fn requests_that_go_together_are_one_batch_within_memory_and_those_of_gone_callers_are_not_painted() {
    let (batcher, control) = batcher();
    let mut all = Vec::new();
    // The first keeps the batcher busy. Of the others, the second has another size, and the caller of the third goes away.
    for width in [512, 512, 768, 512, 512, 512] {
        let mut painting = Box::pin(paint(&batcher, width));
        assert!(matches!(poll!(&mut painting), Poll::Pending));
        if all.is_empty() {
            assert_eq!(control.begun.recv_timeout(SOON), Ok(1));
        }
        all.push(painting);
    }
    drop(all.remove(3));
    for _ in 0..4 {
        control.ends.send(End::Well).unwrap();
    }
    for painting in all {
        assert!(timeout(SOON, painting).await.unwrap().is_ok());
    }
    assert_eq!(control.begun.try_iter().collect::<Vec<_>>(), [2, 1, 1]);
}
