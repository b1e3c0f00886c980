//! The parts of the tool of people: a whole cluster in one process, a demo of it, a simulated one,
//! and a client of its registries.

pub mod ca;
pub mod caller;
pub mod client;
pub mod cluster;
pub mod crowd;
pub mod demo;
pub mod directory;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod gc;
pub mod image;
pub mod layout;
pub mod link;
pub mod operator;
pub mod place;
pub mod preheat;
pub mod queue;
pub mod replicate;
pub mod runtime;
pub mod simulate;
pub mod store;
pub mod tags;
pub mod top;

/// What went wrong, for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A process of the cluster did not start.
    #[error(transparent)]
    Start(#[from] kraken_daemon::StartError),
    /// A file or a directory.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A registry does not answer, or refuses.
    #[error("{0}")]
    Registry(String),
    /// Nobody answers: it may be asked again.
    #[error("{0}")]
    Away(String),
    /// Who was asked answers, and cannot do it now: it may be asked again.
    #[error("{0}")]
    Later(String),
    /// Bytes are not what their digest says.
    #[error("{what} has digest {found}, not {expected}")]
    WrongBytes {
        /// Which blob.
        what: String,
        /// What was asked for.
        expected: kraken_core::Digest,
        /// What came.
        found: kraken_core::Digest,
    },
    /// A plan file does not say what it should.
    #[error("the plan {name} is wrong: {source}")]
    Plan {
        /// Which file.
        name: String,
        /// Where and what.
        source: kraken_sim::PlanError,
    },
    /// What a simulation gave cannot be drawn.
    #[error(transparent)]
    Plot(#[from] kraken_sim::PlotError),
    /// An argument, or a variable that stands in for one, makes no sense wherever it is said.
    #[error("{0}")]
    Argument(String),
    /// Anything else did not work: a file says what it should not, or a process says no.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What a command that ends with it gives its caller: 2 when the command line has to be another one, as
    /// where its words are not understood at all, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Argument(_) => 2,
            _ => 1,
        }
    }

    /// Says what was being done when the system refused.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
