//! A model that takes long to load.

use crate::scene::{PATIENCE, case, model};
use e2e::{
    backend::PROGRESS,
    lambda::Function,
    paths::binary,
    process::{Spec, output},
    stack::function_env,
    wait,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use std::{fs, os::unix::fs::symlink};

/// The model's index is a pipe, so loading goes on when the test says so and not before.
#[test]
fn the_function_registers_and_answers_while_the_model_loads() {
    case(|scene| async move {
        let stack = scene.stack;
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
        let task = scene.task();
        let event = json!({ "Records": [{ "messageId": "one", "body": task.body(), "eventSource": "aws:sqs" }] });
        let answered = function.invoke(&event);
        tokio::pin!(answered);
        let text = || function.process().log_text();
        let arrived = async || text().contains("the first request waits for the model").then_some(());
        tokio::select! {
            early = &mut answered => panic!("answered without a model: {early:?}"),
            arrived = wait::until("request", PATIENCE, arrived) => arrived?,
        }
        assert_eq!(scene.backend.calls().iter().filter(|call| call.path == PROGRESS).count(), 0);
        let content = fs::read(model().join(index))?;
        // Opening a pipe waits for its reader.
        tokio::task::spawn_blocking(move || fs::write(pipe, content)).await??;
        assert_eq!(answered.await?, json!({ "batchItemFailures": [] }));
        assert_eq!(scene.painting(&task).await?.picture.width(), 512);
        for phase in ["device", "weights", "first_request"] {
            assert!(text().contains(&format!("\"phase\":\"{phase}\"")), "no word of {phase}");
        }
        Ok(())
    });
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_function_with_the_reason() {
    case(|scene| async move {
        let stack = scene.stack;
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
    case(|scene| async move {
        let stack = scene.stack;
        // As a person would type it: no Lambda has set its variables.
        let env = function_env(&stack.aws, &stack.run, "no-lambda", &model())?;
        let spec = Spec::new("no-lambda", binary("handler")?).envs(env);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("AWS_LAMBDA_RUNTIME_API is not set") && said.contains("handler worker"), "{said}");
        Ok(())
    });
}
