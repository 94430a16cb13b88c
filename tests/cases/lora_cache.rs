//! Two real processes that share a volume.

use crate::scene::{PATIENCE, case, lora_file, model};
use e2e::{aws::IMAGES, counting::Counting, paths::binary, process::Spec, stack::function_env};
use reqwest::Method;
use std::{fs, time::Duration};

#[test]
fn two_processes_that_share_a_volume_download_a_lora_once() {
    case(|scene| async move {
        let stack = scene.stack;
        // A key of its own, so that nobody else's reads are counted.
        let key = "models/style_shared/lora_weights.safetensors";
        let url = stack.put_lora(key, fs::read(lora_file())?).await?;
        // Both have asked what lies there before the first may read it.
        let s3 = Counting::start(stack.aws.endpoint(), 2).await?;
        let mut workers = Vec::new();
        let mut tasks = Vec::new();
        for name in ["shared-one", "shared-two"] {
            let queue = stack.aws.queue(name, Duration::from_secs(60), 3).await?;
            let task = scene.task().with("lora_model_url", url.as_str());
            stack.aws.send(&queue.url, &task.body()).await?;
            tasks.push(task);
            let worker = Spec::new(name, binary("handler")?)
                .args(["worker"])
                .envs(function_env(&stack.aws, &stack.run, "shared", &model())?)
                .env("SQS_QUEUE_URL", &queue.url)
                .env("AWS_ENDPOINT_URL_S3", s3.url())
                // Not there, where whoever reads a picture would wait for others.
                .env("EASEL_RESULT_BASE_URL", format!("{}/{IMAGES}", stack.aws.endpoint()));
            workers.push(worker.start(&stack.run)?);
        }
        for task in &tasks {
            assert_eq!(scene.painting(task).await?.picture.width(), 512);
        }
        assert_eq!(s3.count(&Method::HEAD, key), 2);
        assert_eq!(s3.count(&Method::GET, key), 1);
        for worker in workers {
            assert!(worker.terminate(PATIENCE).await?.success());
        }
        Ok(())
    });
}
