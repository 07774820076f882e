//! What a record costs: said by its caller, by a function, by itself, or by default.

use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Who estimates costs, in order.
pub(super) struct Costs {
    estimator: Option<Py<PyAny>>,
    default: u64,
    /// The last type found whose instances cannot estimate: looking for what is not there takes longer than
    /// all the rest of a submit.
    mute: Mutex<Option<Py<PyType>>>,
}

impl Costs {
    pub(super) fn new(estimator: Option<Py<PyAny>>, default: u64) -> Self {
        Self { estimator, default, mute: Mutex::new(None) }
    }

    /// The first usable one of: what the caller said, the estimator, the record's own methods, the default.
    ///
    /// # Errors
    /// `ValueError` where the caller said what is no cost, and what an estimator raised that is no
    /// `Exception`, such as Ctrl-C.
    pub(super) fn of(&self, record: &Bound<'_, PyAny>, said: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        if let Some(said) = said {
            return number(said).ok_or_else(|| {
                let text = said.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string());
                PyValueError::new_err(format!("an estimated cost must be a number from 0, not {text}"))
            });
        }
        let py = record.py();
        if let Some(estimator) = &self.estimator
            && let Some(cost) = usable(py, estimator.bind(py).call1((record,)))?
        {
            return Ok(cost);
        }
        if self.is_mute(record) {
            return Ok(self.default);
        }
        for method in [intern!(py, "estimate_tokens"), intern!(py, "estimate_cost")] {
            if let Some(cost) = usable(py, record.call_method0(method))? {
                return Ok(cost);
            }
        }
        Ok(self.default)
    }

    /// Whether the record's type says that none of its instances has a method that estimates.
    fn is_mute(&self, record: &Bound<'_, PyAny>) -> bool {
        let kind = record.get_type();
        if self.mute.lock().as_ref().is_some_and(|mute| mute.is(&kind)) {
            return true;
        }
        let mute = cannot_have_methods(&kind).unwrap_or(false);
        if mute {
            *self.mute.lock() = Some(kind.unbind());
        }
        mute
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &Py<PyAny>> {
        self.estimator.iter()
    }
}

fn cannot_have_methods(kind: &Bound<'_, PyType>) -> PyResult<bool> {
    let py = kind.py();
    for name in ["estimate_tokens", "estimate_cost", "__getattr__"] {
        if kind.hasattr(name)? {
            return Ok(false);
        }
    }
    // Without a dictionary an instance has no attribute that its type lacks.
    Ok(kind.getattr(intern!(py, "__dictoffset__"))?.extract::<isize>()? == 0)
}

/// What an estimator returned if that is a cost, and nothing where it raised.
fn usable(py: Python<'_>, estimated: PyResult<Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
    match estimated {
        Ok(cost) => Ok(number(&cost)),
        Err(error) if error.is_instance_of::<PyException>(py) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A number from 0 as a cost: fractions count up, and what is too large is as large as can be.
fn number(value: &Bound<'_, PyAny>) -> Option<u64> {
    if let Ok(cost) = value.extract::<u64>() {
        return Some(cost);
    }
    let cost = value.extract::<f64>().ok()?;
    // The cast saturates, at infinity too.
    (cost >= 0.0).then(|| cost.ceil() as u64)
}
