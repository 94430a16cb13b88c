//! End-to-end cases: the real relay and handler, a real RabbitMQ, SQS, S3 and the Lambda Runtime API over HTTP.
//!
//! All cases share one stack; each has its own webhook receiver, so that they do not see each other. Cases that break
//! a part start their own.

mod backend_answers;
mod batches;
mod cancel;
mod checkpoint;
mod connections;
mod context;
mod credential;
mod deadline;
mod deletions;
mod deployed;
mod detail;
mod doctor;
mod generate;
mod happy;
mod images;
mod ledger;
mod lifecycle;
mod load;
mod lora_weights;
mod nsfw;
mod picture;
mod private;
mod prompts;
mod provenance;
mod redelivery;
mod refused;
mod relay;
mod relay_aws;
mod relay_bytes;
mod relay_cancels;
mod relay_check;
mod relay_dead_letters;
mod relay_fifo;
mod relay_limits;
mod relay_odd;
mod relay_peers;
mod relay_telemetry;
mod safety;
mod secrets;
mod sizes;
mod storage_faults;
mod traces;
mod variables;
mod webhooks;
mod weights;
mod weights_hub;
mod weights_models;
mod weights_s3;
mod weights_safety;
mod worker;
