//! How strongly a module's change counts: alpha and rank, of the tensors and the settings, and the magnitudes of a DoRA.

use super::{
    super::{
        change::{Change, Magnitude, Side},
        error::Misfit,
        keys::Part,
        settings::Adapter,
    },
    ModuleTensors,
};

impl ModuleTensors {
    /// The magnitudes of a DoRA. They may be NaN or infinite where they are not applied.
    pub(super) fn magnitude(&mut self, change: &Change, adapter: &Adapter) -> Result<Option<Magnitude>, Misfit> {
        let kinds = [
            (Part::DoraScale, Side::ByShape, true),
            (Part::Magnitude, Side::Output, true),
            (Part::MagnitudeVector, Side::Output, false),
        ];
        let found = kinds.into_iter().find_map(|(part, side, dropped_by_diffusers)| {
            let (key, numbers) = self.any_matrix(part)?;
            Some(Magnitude { key, numbers, side, dropped_by_diffusers })
        });
        match (adapter.dora, &found) {
            (Some(true), None) => {
                Err(Misfit::new(&change.key, "the settings say `use_dora`, and it has no magnitudes"))
            }
            (Some(false), Some(magnitude)) => {
                Err(Misfit::new(&magnitude.key, "the settings say that `use_dora` is false"))
            }
            _ => Ok(found),
        }
    }

    /// `alpha / rank`, and the alpha. It is 1 without an alpha in tensors and settings, and for alpha 0 (kohya and LyCORIS read that
    /// as the rank). LoKr with both factors whole has no rank: LyCORIS scales it with 1, whatever alpha is, peft by its settings.
    pub(super) fn scale(&mut self, change: &Change, adapter: &Adapter) -> Result<(f64, Option<f64>), Misfit> {
        let misfit = |reason: String| Misfit::new(&change.key, reason);
        let (named, named_rank) = (adapter.alpha(&self.path), adapter.rank(&self.path));
        let Some(rank) = change.rank() else {
            return Ok(match (named, named_rank) {
                (Some(alpha), Some(rank)) if rank > 0.0 => (alpha / rank, Some(alpha)),
                _ => (1.0, None),
            });
        };
        let rank = rank as f64;
        if let Some(other) = named_rank.filter(|other| *other != rank) {
            return Err(misfit(format!("its rank is {rank}, and the settings say {other}")));
        }
        let key = self.tensors.get(&Part::Alpha).map(|(key, _)| key.clone());
        match (self.number(Part::Alpha)?, named) {
            (Some(alpha), Some(other)) if alpha != other => {
                Err(Misfit::new(key.unwrap_or_default(), format!("it is {alpha}, and the settings say {other}")))
            }
            (Some(0.0), _) => Ok((1.0, Some(0.0))),
            (Some(alpha), named) => {
                let divisor = if named.is_some() { adapter.divisor(rank) } else { rank };
                Ok((alpha / divisor, Some(alpha)))
            }
            (None, Some(alpha)) => Ok((alpha / adapter.divisor(rank), Some(alpha))),
            (None, None) => Ok((1.0, None)),
        }
    }
}
