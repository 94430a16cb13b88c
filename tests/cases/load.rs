//! A little of what the binary `load` does: workers, one of which is killed, and an S3 and a backend that fail by chance.

use crate::scene::{case, model};
use anyhow::ensure;
use clap::Parser;
use e2e::load::{Options, run};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[test]
fn every_task_ends_once_with_its_own_picture_whatever_fails() {
    case(|scene| async move {
        let args = ["load", "--tasks", "12", "--workers", "2", "--kill-every", "2", "--kills", "1"];
        let rest = ["--fault-rate", "0.2", "--seed", "7", "--patience", "180"];
        let options = Cli::try_parse_from(args.iter().chain(&rest))?.options;
        let stack = scene.stack;
        let report = run(&stack.run, &stack.broker, &stack.aws, &model(), &options).await?;
        let faults = report.faults();
        ensure!(faults.is_empty(), "{faults:?}\n{report}");
        ensure!((report.books.complete.len(), report.kills) == (12, 1), "{report}");
        ensure!(report.s3_faults > 0 && report.webhook_faults > 0, "nothing failed\n{report}");
        Ok(())
    });
}
