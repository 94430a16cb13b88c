//! What a model's file and a request may ask for, and what is refused.

use super::{config::Use, *};
use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use std::path::Path;

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
        let mut scheduler = build(*kind, None, &config(&json!({"clip_sample": false})).unwrap(), 4).unwrap();
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
        (Kind::Euler, json!({"num_train_timesteps": 1}), "`num_train_timesteps` is 1, supported: 2 and more"),
        (Kind::Euler, json!({"num_train_timesteps": null}), "`num_train_timesteps` is null, supported: a whole number"),
        (Kind::Euler, json!({"beta_end": "x"}), "`beta_end` is x, supported: a number"),
        (Kind::Euler, json!({"beta_end": 1.5}), "`beta_end` is 1.5, supported: numbers between 0 and 1"),
        (Kind::Euler, json!({"use_karras_sigmas": 1}), "`use_karras_sigmas` is 1, supported: true, false"),
        (
            Kind::Euler,
            json!({"use_karras_sigmas": true, "sigma_min": 0}),
            "`sigma_min` is 0, supported: null and positive",
        ),
        (Kind::Ddim, json!({"timestep_spacing": null}), "`timestep_spacing` is null, supported: linspace, leading"),
        (
            Kind::Ddim,
            json!({"trained_betas": [2.0]}),
            "`trained_betas` is [2.0], supported: null, or num_train_timesteps",
        ),
        (Kind::Pndm, json!({"prediction_type": "sample"}), "`prediction_type` is sample"),
        (
            Kind::DpmSolverPlusPlus,
            json!({"variance_type": "learned"}),
            "`variance_type` is learned, supported: any other",
        ),
        (
            Kind::DpmSolverPlusPlus,
            json!({"algorithm_type": "deis"}),
            "`algorithm_type` is deis, supported: dpmsolver++",
        ),
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
        (Kind::DpmSolverPlusPlus, json!({"variance_type": "fixed_small"})),
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
    assert!(limit(Kind::Pndm, json!({"steps_offset": 1}), 1000).contains("allow 1 to 999"));
    assert_eq!(limit(Kind::Pndm, json!({"steps_offset": 1}), 999), "");
    let said = limit(Kind::Pndm, json!({}), 3);
    assert_eq!(
        said,
        "`num_inference_steps` is 3, the scheduler pndm needs at least 4 with this model's scheduler file"
    );
    assert_eq!(limit(Kind::Pndm, json!({"skip_prk_steps": true}), 1), "");
}

/// A step is a call of the UNet. PNDM makes more of them than it is asked for.
#[test]
fn a_scheduler_calls_the_unet_as_often_as_in_diffusers() {
    let calls =
        |kind, fields: Value, steps| build(kind, None, &config(&fields).unwrap(), steps).unwrap().timesteps().len();
    for (name, kind) in Kind::NAMES {
        let extra = usize::from(*kind == Kind::Pndm);
        assert_eq!(calls(*kind, json!({"skip_prk_steps": true}), 20), 20 + extra, "{name}");
        assert_eq!(calls(*kind, json!({"skip_prk_steps": true}), 1), 1, "{name}");
    }
    assert_eq!(calls(Kind::Pndm, json!({}), 20), 29);
    assert_eq!(calls(Kind::Pndm, json!({}), 4), 13);
}

/// The constructors' fields and defaults are those of diffusers.
#[test]
fn the_fields_of_each_scheduler_are_those_of_diffusers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/schedulers.json");
    let page: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for (name, kind) in Kind::NAMES {
        let theirs = page["constructors"][name]["fields"].as_object().unwrap();
        let fields = || kind.fields().iter().copied().flatten();
        let ours: Map<String, Value> = fields().map(|(field, default, _)| (field.to_string(), read(default))).collect();
        assert_eq!(&ours, theirs, "{name}");
        assert_eq!(fields().count(), ours.len(), "{name} has a field twice");
        assert_eq!(ours.contains_key("use_karras_sigmas"), kind.has_karras_sigmas(), "{name}");
    }
}

/// A text of the tables as a JSON value.
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

/// No setting is read over: another value of a field paints something else, or is refused by the field's name, or paints the same in
/// diffusers as well.
#[test]
fn another_value_of_a_field_is_used_or_refused_or_without_effect() {
    for (name, kind) in Kind::NAMES {
        for (field, default, usage) in kind.fields().iter().copied().flatten() {
            // What the field needs to have an effect.
            let context = match *field {
                "steps_offset" => json!({"timestep_spacing": "leading"}),
                "sigma_min" | "sigma_max" => json!({"use_karras_sigmas": true}),
                "timestep_type" => json!({"prediction_type": "v_prediction"}),
                _ => json!({}),
            };
            let with = |value: Value| {
                let mut fields = context.clone();
                fields[*field] = value;
                painted(*kind, &fields)
            };
            let plain = painted(*kind, &context).unwrap();
            let odd = other_value(field, &read(default));
            match usage {
                Use::Read => match with(odd.clone()) {
                    Ok(other) => assert_ne!(other, plain, "{name} reads over `{field}`"),
                    Err(error) => assert!(error.contains(&format!("`{field}` is ")), "{name}: {error}"),
                },
                Use::Ignored => assert_eq!(with(odd.clone()), Ok(plain), "{name} uses `{field}`"),
                Use::Only(values) => {
                    for value in values.split(", ") {
                        assert_eq!(with(read(value)), Ok(plain.clone()), "{name} uses `{field}`");
                    }
                    let said = with(odd.clone()).unwrap_err();
                    assert!(said.contains(&format!("`{field}` is ")), "{name}: {said}");
                }
                Use::Not(values) => {
                    assert_eq!(with(odd), Ok(plain), "{name} uses `{field}`");
                    for value in values.split(", ") {
                        let said = with(read(value)).unwrap_err();
                        assert!(said.contains(&format!("`{field}` is {value}")), "{name}: {said}");
                    }
                }
            }
        }
    }
}

/// Another value of a field than its default.
fn other_value(field: &str, default: &Value) -> Value {
    match (field, default) {
        ("trained_betas", _) => vec![0.01; 1000].into(),
        ("num_train_timesteps", _) => 500.into(),
        ("prediction_type", _) => "v_prediction".into(),
        ("beta_schedule", _) if default == "linear" => "scaled_linear".into(),
        ("beta_schedule", _) => "linear".into(),
        ("timestep_spacing", _) => "trailing".into(),
        ("timestep_type", _) => "continuous".into(),
        ("original_inference_steps", _) => 30.into(),
        ("timestep_scaling", _) => 0.01.into(),
        // A file that says true clips nothing, because the pipeline's constructor makes it false.
        ("clip_sample", Value::Bool(true)) => true.into(),
        ("clip_sample", _) => 1.into(),
        (_, Value::Bool(default)) => (!default).into(),
        (_, Value::Number(number)) => (number.as_f64().unwrap() / 2.0 + 0.001).into(),
        (_, Value::Null) => 0.5.into(),
        (_, Value::Array(_)) => json!([0]),
        _ => "odd".into(),
    }
}

/// Timesteps and samples of a run of five steps.
fn painted(kind: Kind, fields: &Value) -> std::result::Result<Vec<f32>, String> {
    let mut scheduler = build(kind, None, &config(fields).unwrap(), 5).map_err(|error| error.to_string())?;
    let mut noise = Noise::cpu(0);
    let mut draw = || noise.randn((1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let outputs: Vec<Tensor> = scheduler.timesteps().iter().map(|_| draw()).collect();
    let mut sample = (draw() * scheduler.init_noise_sigma()).unwrap();
    let mut seen: Vec<f32> = scheduler.timesteps().iter().map(|&at| at as f32).collect();
    for (step, output) in outputs.iter().enumerate() {
        sample = scheduler.step(output, step, &sample, &mut Noise::cpu(1)).unwrap();
        seen.extend(sample.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    Ok(seen)
}

#[test]
fn check_finds_what_a_file_has_for_which_scheduler() {
    let refusing = |fields: Value| {
        let config = config(&fields).unwrap();
        let failed = |(name, checked): (&'static str, Result<()>)| checked.err().map(|error| (name, error.to_string()));
        check_all(&config).filter_map(failed).collect::<Vec<_>>()
    };
    assert_eq!(refusing(json!({})), []);
    // LCM allows fewer steps, and the others more. Neither is the file's fault.
    assert_eq!(refusing(json!({"original_inference_steps": 4})), []);
    assert_eq!(refusing(json!({"num_train_timesteps": 10, "original_inference_steps": 10})), []);
    let found = refusing(json!({"thresholding": true}));
    assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["dpmsolver++", "ddim", "unipc", "lcm"]);
    assert_eq!(found[0].1, "scheduler/scheduler_config.json: `thresholding` is true, supported: false");
    assert_eq!(refusing(json!({"prediction_type": "sample"})).len(), Kind::NAMES.len());
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
    assert_eq!(config.settings(Kind::default().fields()).unwrap().train, 500);
    assert!(build(Kind::DpmSolverPlusPlus, None, &config, 20).is_ok());
}

/// At a later step there is less noise, and at the last one something of both.
#[test]
fn noise_is_added_as_at_the_step_where_a_run_begins() {
    let config = SchedulerConfig::from_json(json!({"skip_prk_steps": true, "clip_sample": false})).unwrap();
    let one = |value: f64| Tensor::full(value as f32, (1, 1, 1, 1), &Device::Cpu).unwrap();
    let number = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    for (name, kind) in Kind::NAMES {
        let mut scheduler = build(*kind, None, &config, 10).unwrap();
        scheduler.begin_at(4).unwrap();
        let ratio = |step: usize| {
            let noise = number(scheduler.add_noise(&one(0.0), &one(1.0), step).unwrap());
            let picture = number(scheduler.add_noise(&one(1.0), &one(0.0), step).unwrap());
            assert!(noise > 0.0 && picture > 0.0, "{name} at {step}: {noise} of noise, {picture} of the picture");
            noise / picture
        };
        let ratios: Vec<f32> = [0, 4, 9].map(ratio).to_vec();
        assert!(ratios.windows(2).all(|pair| pair[0] > pair[1]), "{name}: {ratios:?}");
    }
}

#[test]
fn a_runge_kutta_method_cannot_begin_later() {
    let config = SchedulerConfig::from_json(json!({"skip_prk_steps": false})).unwrap();
    let mut scheduler = build(Kind::Pndm, None, &config, 10).unwrap();
    scheduler.begin_at(0).unwrap();
    let error = scheduler.begin_at(1).unwrap_err().to_string();
    assert!(error.starts_with("`scheduler` is pndm, which begins from an image only where"), "{error}");
}

/// The GPU computes its steps from these coefficients.
#[test]
fn coefficients_give_the_same_steps() {
    let draw = |seed: u64| Noise::cpu(seed).randn((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
    for fields in [json!({}), json!({"prediction_type": "v_prediction"}), json!({"use_karras_sigmas": true})] {
        // From the first step, or a later one.
        for (steps, first) in [(1, 0), (2, 0), (3, 0), (50, 0), (50, 10), (3, 2)] {
            let mut scheduler = build(Kind::DpmSolverPlusPlus, None, &config(&fields).unwrap(), steps).unwrap();
            scheduler.begin_at(first).unwrap();
            let all = scheduler.coefficients().unwrap();
            assert_eq!(all.len(), scheduler.timesteps().len());
            let (mut sample, mut before) = (draw(0), (draw(0) * 0.0).unwrap());
            for (step, by) in all.into_iter().enumerate().skip(first) {
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
