//! A short run of the binary `load`: a worker is killed, and requests to S3, SQS and the backend fail or lose their answers.

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
        // With this seed the answer to the relay's first batch is lost.
        let lost = [report.s3_faults, report.sqs_faults, report.relay_faults].map(|faults| faults.lost_answers());
        ensure!(lost.iter().all(|&count| count > 0), "{report}");
        Ok(())
    });
}
