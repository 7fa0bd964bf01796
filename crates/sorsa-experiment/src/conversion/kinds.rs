//! Sums over modules of one kind: the last component of their paths.

/// Values by kind, in the order in which the kinds were met.
#[derive(Debug, Clone)]
pub(super) struct Kinds<T>(Vec<(String, T)>);

impl<T: Default> Kinds<T> {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of the kind of the module at `path`.
    pub fn of(&mut self, path: &str) -> &mut T {
        let name = path.rsplit('.').next().unwrap_or(path);
        let index = match self.0.iter().position(|(known, _)| known == name) {
            Some(index) => index,
            None => {
                self.0.push((name.to_owned(), T::default()));
                self.0.len() - 1
            }
        };
        &mut self.0[index].1
    }

    pub fn into_iter(self) -> impl Iterator<Item = (String, T)> {
        self.0.into_iter()
    }
}
