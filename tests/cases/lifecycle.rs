//! The function starts while its model loads, and finishes its work before it ends.

use crate::context::{HOUR, OwnFunction, PATIENCE, case, model};
use e2e::{
    backend::{COMPLETE, PROGRESS},
    lambda::Function,
    mapping,
    paths::binary,
    process::{Spec, output},
    stack::function_env,
    wait,
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use serde_json::json;
use std::{fs, os::unix::fs::symlink, time::Duration};

/// The model's index is a pipe, so that loading waits for the test.
#[test]
fn the_function_registers_and_answers_while_the_model_loads() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let (slow, index) = (stack.run.folder("slow-model")?, "model_index.json");
        for entry in fs::read_dir(model())? {
            let entry = entry?;
            if entry.file_name() != index {
                symlink(entry.path(), slow.join(entry.file_name()))?;
            }
        }
        let pipe = slow.join(index);
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // An event without records is answered before this returns.
        let name = "slow-function";
        let function = Function::start(&stack.run, name, &function_env(&stack.aws, &stack.run, name, &slow)?).await?;
        let task = ctx.task();
        let event = json!({ "Records": [{ "messageId": "one", "body": task.body(), "eventSource": "aws:sqs" }] });
        let answered = function.invoke(&event);
        tokio::pin!(answered);
        let text = || function.process().log_text();
        let arrived = async || text().contains("the first request waits for the model").then_some(());
        tokio::select! {
            early = &mut answered => panic!("answered without a model: {early:?}"),
            arrived = wait::until("request", PATIENCE, arrived) => arrived?,
        }
        assert_eq!(ctx.backend.calls().iter().filter(|call| call.path == PROGRESS).count(), 0);
        let content = fs::read(model().join(index))?;
        // Opening a pipe waits for its reader.
        tokio::task::spawn_blocking(move || fs::write(pipe, content)).await??;
        assert_eq!(answered.await?, json!({ "batchItemFailures": [] }));
        assert_eq!(ctx.painting(&task).await?.picture.width(), 512);
        for phase in ["device", "weights", "first_request"] {
            assert!(text().contains(&format!("\"phase\":\"{phase}\"")), "no word of {phase}");
        }
        Ok(())
    });
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_function_with_the_reason() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let (name, folder) = ("no-model", stack.run.folder("no-model")?);
        let started = Function::start(&stack.run, name, &function_env(&stack.aws, &stack.run, name, &folder)?).await;
        if let Ok(function) = started {
            let ended = wait::at_most("end of the function", PATIENCE, function.process().exited()).await?;
            assert_eq!(ended.code(), Some(1));
        }
        let log = fs::read_to_string(stack.run.path().join(format!("{name}.log")))?;
        assert!(log.contains("model_index.json"), "{log}");
        Ok(())
    });
}

#[test]
fn outside_lambda_the_function_ends_with_the_reason() {
    case(|ctx| async move {
        let stack = ctx.stack;
        // As a person would type it, without Lambda's variables.
        let env = ctx.env("no-lambda")?;
        let spec = Spec::new("no-lambda", binary("handler")?).envs(env);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("AWS_LAMBDA_RUNTIME_API is not set") && said.contains("handler worker"), "{said}");
        Ok(())
    });
}

/// Without an answer the event would come again after the whole visibility timeout.
#[test]
fn sigterm_lets_the_event_in_work_be_painted_and_answered() {
    case(|ctx| async move {
        let (aws, OwnFunction { queue, mut api, function }) = (&ctx.stack.aws, ctx.own_function("shutdown").await?);
        let task = ctx.task().with("num_inference_steps", 7);
        aws.send(&queue.url, &task.body()).await?;
        let messages = aws.receive(&queue.url, 20, 1).await?;
        let answer = api.invoke(mapping::event(&messages, &queue.arn()), HOUR);
        let ended = async {
            ctx.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
            function.terminate(PATIENCE).await
        };
        let (answer, ended) = wait::at_most("answer and end", PATIENCE, async { tokio::join!(answer, ended) }).await?;
        assert_eq!(answer?, Ok(json!({ "batchItemFailures": [] })));
        assert!(ended?.success(), "{}", function.error("no clean end"));
        assert_eq!(ctx.backend.end_of(task.id(), Duration::ZERO).await?.path, COMPLETE);
        Ok(())
    });
}

#[test]
fn a_second_signal_ends_the_function_at_once() {
    case(|ctx| async move {
        let (aws, OwnFunction { queue, mut api, function }) =
            (&ctx.stack.aws, ctx.own_function("shutdown-twice").await?);
        // The task stays in work until the backend takes its webhook.
        ctx.backend.refuse_with_retry_after(COMPLETE, 503, usize::MAX, "1");
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        let messages = aws.receive(&queue.url, 20, 1).await?;
        let answer = api.invoke(mapping::event(&messages, &queue.arn()), HOUR);
        let ended = async {
            ctx.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
            function.signal(Signal::INT);
            function.logs("a second signal", PATIENCE).await?;
            assert!(function.is_running(), "{}", function.error("ended by the first one"));
            function.signal(Signal::TERM);
            wait::at_most("end", Duration::from_secs(3), function.exited()).await
        };
        let status = tokio::select! {
            answer = answer => anyhow::bail!("it was answered first: {answer:?}"),
            status = ended => status?,
        };
        assert_eq!(status.code(), Some(128 + Signal::TERM.as_raw()), "{}", function.error(&status.to_string()));
        Ok(())
    });
}
