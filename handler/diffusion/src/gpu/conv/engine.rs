//! Which of cuDNN's engines compute as they should. Refuses those that round on the way, draw lots, or are compiled at run time.

use crate::gpu::{
    Dtype,
    cudnn::{BehaviourNote, Descriptor, NumericalNote},
    error::Result,
};
use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behaviour, cudnnBackendDescriptorType_t as Type,
    cudnnBackendNumericalNote_t as Numerical,
};

/// The engine's number, if it computes as it should for this dtype.
pub(super) fn inspect(dtype: Dtype, configuration: &Descriptor) -> Result<Option<i64>> {
    let engine = Descriptor::new(Type::CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine")?;
    // Filled in place: the configuration's engine is copied into the descriptor given.
    configuration.get(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &mut [engine.raw])?;
    let mut number = [-1_i64];
    engine.get(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &mut number)?;
    let mut numerical = [NumericalNote(u32::MAX); Numerical::CUDNN_NUMERICAL_NOTE_TYPE_COUNT as usize];
    let numericals = engine.get(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, &mut numerical)?;
    let mut behaviour = [BehaviourNote(u32::MAX); Behaviour::CUDNN_BEHAVIOR_NOTE_TYPE_COUNT as usize];
    let behaviours = engine.get(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, &mut behaviour)?;
    let [number] = number;
    Ok(acceptable(dtype, &numerical[..numericals], &behaviour[..behaviours]).then_some(number))
}

/// Whether sums stay f32 with nothing rounded or transformed on the way, f32 products are exact (tensor cores would
/// round to TF32), and no kernel is compiled at run time.
fn acceptable(dtype: Dtype, numerical: &[NumericalNote], behaviour: &[BehaviourNote]) -> bool {
    let has = |note: Numerical| numerical.contains(&NumericalNote(note as u32));
    let refused = [
        Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
        // One seed must give one picture.
        Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
        Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
        Numerical::CUDNN_NUMERICAL_NOTE_FFT,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13,
    ];
    let rounded = dtype == Dtype::F32 && has(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    let compiled = behaviour.contains(&BehaviourNote(Behaviour::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32));
    !rounded && !compiled && !refused.into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes() {
        let note = |note: Numerical| [NumericalNote(note as u32)];
        let cores = note(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
        assert!(acceptable(Dtype::F16, &cores, &[]));
        assert!(acceptable(Dtype::BF16, &cores, &[]));
        assert!(!acceptable(Dtype::F32, &cores, &[]));
        assert!(acceptable(Dtype::F32, &[], &[]));
        for refused in [
            Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
            // One seed must give one picture.
            Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
            Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
            Numerical::CUDNN_NUMERICAL_NOTE_FFT,
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD,
        ] {
            assert!(!acceptable(Dtype::F16, &note(refused), &[]));
        }
        let unknown = [NumericalNote(99)];
        assert!(acceptable(Dtype::F16, &unknown, &[BehaviourNote(3)]));
        assert!(!acceptable(Dtype::F16, &cores, &[BehaviourNote(0)]));
    }
}
