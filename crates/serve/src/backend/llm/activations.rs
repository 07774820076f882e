//! What flows through a decoder in a step.

use tch::{Device, Kind, TchError, Tensor};

use super::config::DecoderConfig;

/// A step's activations, a row for each token. On a CPU they lie in memory that the next step uses again; elsewhere
/// they are empty until something is put in.
pub(super) struct Activations {
    /// `[rows, hidden]`: what layers add to.
    pub(super) states: Tensor,
    /// `[rows, hidden]`, normed for what follows.
    pub(super) normed: Tensor,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`: queries, keys and values side by side.
    pub(super) projections: Tensor,
    /// `[rows, heads * head_dim]` in `f32`, ready to meet keys.
    pub(super) queries: Tensor,
    /// `[rows, heads * head_dim]`: what each row attends to.
    pub(super) mixed: Tensor,
    /// `[rows, intermediate]`: inside the perceptron.
    pub(super) wide: Tensor,
}

/// Memory for the activations of as many rows as the largest step yet.
pub(super) struct Workspace {
    rows: i64,
    all: Activations,
}

impl Activations {
    fn none() -> Self {
        let [states, normed, projections, queries, mixed, wide] = std::array::from_fn(|_| Tensor::new());
        Self { states, normed, projections, queries, mixed, wide }
    }

    fn new(rows: i64, config: &DecoderConfig, kind: Kind) -> Result<Self, TchError> {
        let of = |width: i64, kind: Kind| Tensor::f_empty([rows, width], (kind, Device::Cpu));
        let heads = config.heads * config.head_dim;
        Ok(Self {
            states: of(config.hidden, kind)?,
            normed: of(config.hidden, kind)?,
            projections: of(heads + 2 * config.kv_heads * config.head_dim, kind)?,
            queries: of(heads, Kind::Float)?,
            mixed: of(heads, kind)?,
            wide: of(config.intermediate, kind)?,
        })
    }

    /// The memory of the first rows.
    pub(super) fn first(&self, rows: i64) -> Result<Self, TchError> {
        let of = |all: &Tensor| if all.defined() { all.f_narrow(0, 0, rows) } else { Ok(Tensor::new()) };
        Ok(Self {
            states: of(&self.states)?,
            normed: of(&self.normed)?,
            projections: of(&self.projections)?,
            queries: of(&self.queries)?,
            mixed: of(&self.mixed)?,
            wide: of(&self.wide)?,
        })
    }
}

impl Workspace {
    pub(super) fn new() -> Self {
        Self { rows: 0, all: Activations::none() }
    }

    /// Activations of so many rows. Those of the step before are over.
    pub(super) fn activations(
        &mut self,
        rows: i64,
        config: &DecoderConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Activations, TchError> {
        if device != Device::Cpu {
            return Ok(Activations::none());
        }
        if rows > self.rows {
            // The old go first, as there may not be room for both.
            *self = Self::new();
            *self = Self { rows, all: Activations::new(rows, config, kind)? };
        }
        self.all.first(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn steps_use_the_same_memory_until_one_is_larger() {
        let tinylm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tinylm");
        let config = super::super::read(&tinylm).unwrap().decoder;
        let mut workspace = Workspace::new();
        let mut step = |rows: i64| {
            let of = workspace.activations(rows, &config, Kind::BFloat16, Device::Cpu).unwrap();
            let all = [&of.states, &of.normed, &of.projections, &of.queries, &of.mixed, &of.wide];
            assert!(all.iter().all(|tensor| tensor.size()[0] == rows));
            all.map(Tensor::data_ptr)
        };
        let first = step(8);
        assert_eq!(step(3), first);
        assert_eq!(step(8), first);
        let larger = step(4096);
        assert_eq!(step(5), larger);
    }
}
