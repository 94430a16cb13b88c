//! The batcher in front of an engine that needs no model and no GPU: who hears what when a painting breaks off, and when a GPU is
//! lost. That an engine notices a lost GPU is tested on a GPU.

use super::*;
use crate::{observe::Tally, picture::ModelName};
use diffusion::{error::PipelineError, noise::Source, prompt::Weighting, schedulers::Kind};
use futures_util::poll;
use std::{task::Poll, time::Duration};
use tokio::time::timeout;

/// For what comes at once.
const SOON: Duration = Duration::from_secs(10);

/// How a painting ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    Panic,
    Loss,
}

/// An engine whose paintings end as they are told to.
#[derive(Debug)]
pub(crate) struct Fake {
    begun: mpsc::Sender<usize>,
    ends: mpsc::Receiver<End>,
    is_lost: bool,
}

/// The other side of it.
#[derive(Debug)]
pub(crate) struct Told {
    /// How many tasks a painting has, when it begins.
    pub(crate) begun: mpsc::Receiver<usize>,
    /// Ends it.
    pub(crate) ends: mpsc::Sender<End>,
}

impl Fake {
    pub(crate) fn new() -> (Self, Told) {
        let ((begun, seen), (ends, told)) = (mpsc::channel(), mpsc::channel());
        (Self { begun, ends: told, is_lost: false }, Told { begun: seen, ends })
    }
}

impl BatchEngine for Fake {
    fn paint_together(&mut self, orders: &mut [Order<'_>]) -> Vec<Result<Painted, EngineError>> {
        self.begun.send(orders.len()).unwrap();
        let end = self.ends.recv().unwrap();
        assert_ne!(end, End::Panic, "told to");
        self.is_lost |= end == End::Loss;
        let painted = |_: &mut Order<'_>| match end {
            End::Loss => Err(PipelineError::Candle(candle_core::Error::Msg("an illegal access".into())).into()),
            _ => Ok(Painted { pictures: Vec::new(), model: ModelName::of("m".as_ref()), stages: Vec::new() }),
        };
        orders.iter_mut().map(painted).collect()
    }

    fn most_at_once(&self, _: &Request) -> usize {
        2
    }

    fn memory(&self) -> Option<Memory> {
        None
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }
}

fn batcher() -> (Batcher, Told) {
    let (engine, told) = Fake::new();
    (Batcher::start(engine, None, Metrics::new(&Tally::default())).unwrap(), told)
}

pub(crate) fn wanted(width: usize) -> Arc<GenerationRequest> {
    let request = Request {
        prompt: "a fox".into(),
        negative_prompt: String::new(),
        prompt_weighting: Weighting::None,
        width,
        height: 512,
        seed: 1,
        steps: 2,
        guidance_scale: 7.5,
        scheduler: Kind::default(),
        karras_sigmas: None,
        noise_source: Source::Cuda,
    };
    Arc::new(GenerationRequest::new(request, 1))
}

async fn paint(batcher: &Batcher, width: usize) -> Result<Painted, BatcherError> {
    batcher.paint(wanted(width), Box::new(|_| ControlFlow::Continue(())), Stage::begin("wait")).await
}

#[tokio::test]
async fn a_lost_gpu_ends_the_painter_and_whoever_waits_hears_it() {
    let (batcher, told) = batcher();
    let (first, second) = (paint(&batcher, 512), paint(&batcher, 512));
    tokio::pin!(first, second);
    assert!(poll!(&mut first).is_pending());
    told.begun.recv_timeout(SOON).unwrap();
    assert!(poll!(&mut second).is_pending());
    assert!(timeout(Duration::ZERO, batcher.ended()).await.is_err());
    told.ends.send(End::Loss).unwrap();
    assert!(matches!(timeout(SOON, first).await.unwrap(), Err(BatcherError::Engine(_))));
    assert!(matches!(timeout(SOON, second).await.unwrap(), Err(BatcherError::Ended)));
    timeout(SOON, batcher.ended()).await.unwrap();
    assert!(matches!(paint(&batcher, 512).await, Err(BatcherError::Ended)));
}

#[tokio::test]
async fn a_panic_is_that_paintings_error_and_the_next_one_is_painted() {
    let (batcher, told) = batcher();
    told.ends.send(End::Panic).unwrap();
    told.ends.send(End::Well).unwrap();
    let broken = timeout(SOON, paint(&batcher, 512)).await.unwrap();
    assert!(matches!(broken, Err(BatcherError::Panic(words)) if words.contains("told to")));
    assert!(timeout(SOON, paint(&batcher, 512)).await.unwrap().is_ok());
}

#[tokio::test]
async fn those_that_go_together_are_one_batch_as_far_as_memory_goes_and_nobody_who_gave_up_is_painted() {
    let (batcher, told) = batcher();
    let mut all = Vec::new();
    // The first keeps the batcher busy; of the others, the second is another size, and the third gives up.
    for width in [512, 512, 768, 512, 512, 512] {
        let mut painting = Box::pin(paint(&batcher, width));
        assert!(matches!(poll!(&mut painting), Poll::Pending));
        if all.is_empty() {
            assert_eq!(told.begun.recv_timeout(SOON), Ok(1));
        }
        all.push(painting);
    }
    drop(all.remove(3));
    for _ in 0..4 {
        told.ends.send(End::Well).unwrap();
    }
    for painting in all {
        assert!(timeout(SOON, painting).await.unwrap().is_ok());
    }
    assert_eq!(told.begun.try_iter().collect::<Vec<_>>(), [2, 1, 1]);
}
