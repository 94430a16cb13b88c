//! `--studio`: the stack, and a page to look at it.

use crate::{options::Options, styles};
use anyhow::{Result, bail};
use e2e::studio::{Book, Shelf, Stage, Studio, Style, open};
use std::{
    env,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

/// Starts everything and serves the page; never ends by itself.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let (model, folder) = (options.model()?, options.styles()?);
    let book = Arc::new(Book::open(Shelf::open(&options.out.join("studio"))?)?);
    println!("starting the stack");
    let clock = Instant::now();
    let ready = |part: &str| println!("  {part} ready after {:.1} s", clock.elapsed().as_secs_f64());
    let stage = Stage::start(model, book, ready).await?;
    let stored = styles::store(&stage.aws, folder, options.lora.as_deref()).await?;
    let style =
        |(name, style): (String, styles::Style)| Style { name, id: style.id, artist: style.artist, url: style.url };
    let studio = Arc::new(Studio { stage, styles: stored.into_iter().map(style).collect() });
    let (addr, served) = open(studio.clone()).await?;
    let stage = &studio.stage;
    let told = async {
        stage.faults.hands.ready().await?;
        ready("function");
        println!("\nstudio: http://{addr}\n  pictures  {}", stage.book.shelf().path().display());
        println!("  logs      {}\nIt stays until ctrl-C.", stage.run.path().display());
        look(&format!("http://{addr}"));
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = stage.work() => match ended? {},
        ended = served => ended?,
        ended = told => ended?,
    }
    bail!("the page's server has ended")
}

/// Shows the page where there is a display.
fn look(url: &str) {
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some()) {
        let quiet = || Stdio::null();
        // Without a browser the address is still on the screen.
        let _ = Command::new("xdg-open").arg(url).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
    }
}
