//! What a model's file and a request may ask for, and what is refused.

use super::*;
use candle_core::{DType, Device};
use serde_json::{Value, json};

fn config(fields: &Value) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(fields.clone())
}

fn refused(kind: Kind, karras_sigmas: Option<bool>, fields: &Value, steps: usize) -> String {
    match config(fields).and_then(|config| build(kind, karras_sigmas, &config, steps)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_scheduler_is_found_by_its_name() {
    for (name, kind) in Kind::NAMES {
        assert_eq!((kind.to_string().as_str(), name.parse()), (*name, Ok(*kind)));
    }
    assert!(Kind::names().starts_with("dpmsolver++, euler, "), "{}", Kind::names());
    assert!("magic".parse::<Kind>().unwrap_err().contains("unipc"));
}

/// Requests whose scheduler draws noise are not painted as one batch, because each has its own stream.
#[test]
fn draws_tells_whether_a_scheduler_draws_noise() {
    for (name, kind) in Kind::NAMES {
        let mut scheduler = build(*kind, None, &config(&json!({"clip_sample": false})).unwrap(), 3).unwrap();
        let (mut used, mut fresh) = (Noise::cpu(1), Noise::cpu(1));
        let mut sample = Tensor::ones((1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
        for step in 0..scheduler.timesteps().len() {
            sample = scheduler.step(&sample.clone(), step, &sample, &mut used).unwrap();
        }
        let next =
            |noise: &mut Noise| noise.draw_like(&sample).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(next(&mut used) != next(&mut fresh), kind.draws(), "{name}");
    }
}

#[test]
fn unsupported_settings_are_refused() {
    let cases = [
        (
            Kind::Euler,
            json!({"prediction_type": "sample"}),
            "`prediction_type` is sample, supported: epsilon, v_prediction",
        ),
        (Kind::Ddim, json!({"beta_schedule": "squaredcos_cap_v2"}), "`beta_schedule` is squaredcos_cap_v2"),
        (Kind::Ddim, json!({"trained_betas": [0.1]}), "`trained_betas` is [0.1], supported: null"),
        (Kind::Ddim, json!({"thresholding": true}), "`thresholding` is true, supported: false"),
        (Kind::Lcm, json!({"thresholding": true}), "`thresholding`"),
        (Kind::Lcm, json!({"original_inference_steps": 1001}), "`original_inference_steps` is 1001"),
        (Kind::Lcm, json!({"rescale_betas_zero_snr": true}), "`rescale_betas_zero_snr` is true"),
        (Kind::DpmSolverPlusPlus, json!({"solver_order": 3}), "`solver_order` is 3, supported: 2"),
        (Kind::DpmSolverPlusPlus, json!({"algorithm_type": "sde-dpmsolver++"}), "`algorithm_type` is sde-dpmsolver++"),
        (Kind::DpmSolverPlusPlus, json!({"final_sigmas_type": "sigma_min"}), "`final_sigmas_type` is sigma_min"),
        (Kind::UniPc, json!({"disable_corrector": [0]}), "`disable_corrector` is [0], supported: []"),
        (Kind::UniPc, json!({"solver_type": "bh1"}), "`solver_type` is bh1"),
        (Kind::Euler, json!({"use_beta_sigmas": true}), "`use_beta_sigmas` is true"),
        (Kind::Euler, json!({"num_train_timesteps": 1}), "`num_train_timesteps` is 1"),
    ];
    for (kind, fields, expected) in cases {
        let said = refused(kind, None, &fields, 20);
        assert!(said.contains(expected), "{kind} {fields}: `{said}`");
    }
}

#[test]
fn unknown_and_default_settings_are_accepted() {
    let cases = [
        (Kind::Euler, json!({"thresholding": true, "solver_order": 3})),
        (Kind::Ddim, json!({"use_karras_sigmas": true})),
        (Kind::UniPc, json!({"solver_type": "midpoint", "disable_corrector": [], "solver_p": null})),
        (Kind::DpmSolverPlusPlus, json!({"solver_type": "bh2", "use_karras_sigmas": null, "trained_betas": null})),
    ];
    for (kind, fields) in cases {
        assert_eq!(refused(kind, None, &fields, 20), "", "{kind} {fields}");
    }
}

#[test]
fn steps_have_limits() {
    let limit = |kind, fields: Value, steps| refused(kind, None, &fields, steps);
    assert!(limit(Kind::Euler, json!({}), 0).contains("`num_inference_steps` is 0"));
    assert!(limit(Kind::Euler, json!({}), 1001).contains("`num_inference_steps` is 1001"));
    assert_eq!(limit(Kind::Euler, json!({}), 1000), "");
    assert_eq!(limit(Kind::Lcm, json!({}), 50), "");
    let said = limit(Kind::Lcm, json!({}), 51);
    assert_eq!(said, "`num_inference_steps` is 51, the model and its scheduler allow 1 to 50");
    assert_eq!(limit(Kind::Lcm, json!({"original_inference_steps": 100}), 100), "");
    assert_eq!(limit(Kind::DpmSolverPlusPlus, json!({}), 1000), "");
    assert!(limit(Kind::UniPc, json!({"timestep_spacing": "leading"}), 1000).contains("allow 1 to 999"));
    assert!(limit(Kind::Ddim, json!({"steps_offset": 1}), 1000).contains("allow 1 to 999"));
}

#[test]
fn a_request_overrides_the_files_karras_sigmas() {
    let timesteps =
        |asked, fields: Value| build(Kind::Euler, asked, &config(&fields).unwrap(), 7).unwrap().timesteps().to_vec();
    let (plain, karras) = (json!({}), json!({"use_karras_sigmas": true}));
    assert_eq!(timesteps(Some(true), plain.clone()), timesteps(None, karras.clone()));
    assert_eq!(timesteps(Some(false), karras), timesteps(None, plain.clone()));
    assert_ne!(timesteps(Some(true), plain.clone()), timesteps(None, plain.clone()));
    let said = refused(Kind::Ddim, Some(true), &plain, 20);
    assert_eq!(said, "`karras_sigmas` is true, the scheduler ddim has none");
    assert_eq!(refused(Kind::Ddim, Some(false), &plain, 20), "");
}

#[test]
fn a_file_as_python_writes_it_is_read() {
    let model = tempfile::tempdir().unwrap();
    std::fs::create_dir(model.path().join("scheduler")).unwrap();
    let file = model.path().join("scheduler/scheduler_config.json");
    std::fs::write(&file, r#"{"lambda_min_clipped": -Infinity, "num_train_timesteps": 500}"#).unwrap();
    let config = SchedulerConfig::load(model.path()).unwrap();
    assert_eq!(config.num_train_timesteps, 500);
    assert!(build(Kind::DpmSolverPlusPlus, None, &config, 20).is_ok());
}

/// The GPU computes its steps from these coefficients.
#[test]
fn coefficients_give_the_same_steps() {
    let draw = |seed: u64| Noise::cpu(seed).randn((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
    for fields in [json!({}), json!({"prediction_type": "v_prediction"}), json!({"use_karras_sigmas": true})] {
        for steps in [1, 2, 3, 50] {
            let mut scheduler = build(Kind::DpmSolverPlusPlus, None, &config(&fields).unwrap(), steps).unwrap();
            let all = scheduler.coefficients().unwrap();
            assert_eq!(all.len(), scheduler.timesteps().len());
            let (mut sample, mut before) = (draw(0), (draw(0) * 0.0).unwrap());
            for (step, by) in all.into_iter().enumerate() {
                let output = draw(step as u64 + 1);
                let part = |tensor: &Tensor, by: f32| (tensor * f64::from(by)).unwrap();
                let add = |a: Tensor, b: Tensor| (a + b).unwrap();
                let clean = add(part(&sample, by.clean_by_sample), part(&output, by.clean_by_output));
                let next = add(part(&sample, by.sample), part(&clean, by.clean));
                let next = add(next, part(&before, by.clean_before));
                let theirs = scheduler.step(&output, step, &sample, &mut Noise::cpu(0)).unwrap();
                let most = |tensor: Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let error = most((&next - &theirs).unwrap()) / most(theirs.clone());
                assert!(error < 2e-6, "{fields} step {step} of {steps}: {error:e}");
                (sample, before) = (theirs, clean);
            }
        }
    }
    assert!(build(Kind::EulerAncestral, None, &config(&json!({})).unwrap(), 5).unwrap().coefficients().is_none());
}
