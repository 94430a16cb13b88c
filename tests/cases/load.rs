//! A little of what the binary `load` does: workers, one of which is killed, and an S3, an SQS and a backend that fail by chance or
//! carry out what is asked and lose the answer.

use crate::context::{case, model};
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
    case(|ctx| async move {
        let args = ["load", "--tasks", "12", "--workers", "2", "--kill-every", "2", "--kills", "1"];
        let rest = ["--fault-rate", "0.12", "--latest", "6", "--seed", "764", "--patience", "180"];
        let options = Cli::try_parse_from(args.iter().chain(&rest))?.options;
        let stack = ctx.stack;
        let report = run(&stack.run, &stack.broker, &stack.aws, &model(), &options).await?;
        let violations = report.violations();
        ensure!(violations.is_empty(), "{violations:?}\n{report}");
        ensure!((report.outcomes.complete.len(), report.kills) == (12, 1), "{report}");
        let refused = [report.s3_faults, report.sqs_faults, report.webhook_faults].map(|faults| faults.refused);
        ensure!(refused.iter().all(|&count| count > 0), "{report}");
        // With this seed the relay's first batch is carried out without an answer.
        let lost = [report.s3_faults, report.sqs_faults, report.relay_faults].map(|faults| faults.lost_answers());
        ensure!(lost.iter().all(|&count| count > 0), "{report}");
        Ok(())
    });
}
