//! From one vector a token to one a text.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, TchError, Tensor};

use crate::backend::checkpoint::{CheckpointError, read_json};

/// Which tokens' vectors make the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The mean of all, special tokens included.
    Mean,
    /// The first.
    Cls,
}

/// What a zero vector's length is taken for when it is scaled, as in `torch.nn.functional.normalize`.
const SMALLEST_LENGTH: f64 = 1e-12;

/// 1_Pooling/config.json: one key a mode up to sentence-transformers 5, then one key for all.
#[derive(Deserialize)]
struct RawPooling {
    pooling_mode: Option<OneOrMany>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl RawPooling {
    fn modes(self) -> Vec<String> {
        match self.pooling_mode {
            Some(OneOrMany::One(mode)) => vec![mode],
            Some(OneOrMany::Many(modes)) => modes,
            None => [
                ("cls", self.pooling_mode_cls_token),
                ("max", self.pooling_mode_max_tokens),
                ("mean", self.pooling_mode_mean_tokens),
                ("mean_sqrt_len_tokens", self.pooling_mode_mean_sqrt_len_tokens),
                ("weightedmean", self.pooling_mode_weightedmean_tokens),
                ("lasttoken", self.pooling_mode_lasttoken),
            ]
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(mode, _)| mode.to_owned())
            .collect(),
        }
    }
}

impl Pooling {
    /// Reads a Pooling module's config.json.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let modes = read_json::<RawPooling>(path)?.modes();
        match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["mean"] | [] => Ok(Self::Mean),
            ["cls"] => Ok(Self::Cls),
            _ => Err(CheckpointError::Unsupported {
                path: path.to_owned(),
                what: format!("pooling by {}", modes.join(" and ")),
                supported: "mean, cls".to_owned(),
            }),
        }
    }

    /// One row a sequence from packed rows: `[rows, hidden]` to `[lengths.len(), hidden]`.
    pub(super) fn pool(self, states: &Tensor, lengths: &[i64]) -> Result<Tensor, TchError> {
        let mut start = 0;
        let mut rows = Vec::with_capacity(lengths.len());
        for &length in lengths {
            rows.push(match self {
                Self::Mean => {
                    states.f_narrow(0, start, length)?.f_mean_dim(&[0i64][..], false, Kind::Float)?
                }
                Self::Cls => states.f_select(0, start)?,
            });
            start += length;
        }
        Tensor::f_stack(&rows, 0)
    }
}

/// Scales each row to length 1.
pub(super) fn normalize(rows: &Tensor) -> Result<Tensor, TchError> {
    let lengths = rows.f_norm_scalaropt_dim(2, &[1i64][..], true)?.f_clamp_min(SMALLEST_LENGTH)?;
    rows.f_div(&lengths)
}
