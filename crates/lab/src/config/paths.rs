//! Paths of a run file: `$CUTLAYER_DATA` and `~` are expanded, a relative path starts at the file's folder, all end up absolute.

use super::{ConfigError, RunConfig};
use cutlayer_data::{HeldOut, Source};
use std::path::{Path, PathBuf};

/// Environment variable that names the folder of shared data; a path may start with `$CUTLAYER_DATA`.
pub const DATA_VARIABLE: &str = "CUTLAYER_DATA";

/// Where shared data is where the variable is not set, from the current folder.
const DATA_FALLBACK: &str = "../shared/data";

/// The folder of shared data: `$CUTLAYER_DATA`, or else `../shared/data`.
pub fn data_folder() -> PathBuf {
    let set = std::env::var_os(DATA_VARIABLE).filter(|value| !value.is_empty());
    set.map_or_else(|| PathBuf::from(DATA_FALLBACK), PathBuf::from)
}

pub(super) fn make_absolute(config: &mut RunConfig, folder: &Path) -> Result<(), ConfigError> {
    let data = data_folder();
    let mut paths: Vec<&mut PathBuf> = config.model.path.iter_mut().chain(config.model.adapter.iter_mut()).collect();
    for spec in config.data.iter_mut().chain(config.client.iter_mut().filter_map(|client| client.data.as_mut())) {
        paths.extend(source_paths(&mut spec.source));
        if let Some(HeldOut::Source(source)) = &mut spec.held_out {
            paths.extend(source_paths(source));
        }
    }
    for path in paths {
        *path = absolute(path, folder, &data)?;
    }
    Ok(())
}

fn source_paths(source: &mut Source) -> impl Iterator<Item = &mut PathBuf> {
    std::iter::once(&mut source.path).chain(source.key_map.iter_mut())
}

fn absolute(path: &Path, folder: &Path, data: &Path) -> Result<PathBuf, ConfigError> {
    let unusable = |reason: &str| ConfigError::Invalid { key: "a path", found: path.display().to_string(), remedy: reason.into() };
    let mut parts = path.components();
    let first = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    let variable = first.strip_prefix('$').map(|name| name.trim_start_matches('{').trim_end_matches('}'));
    let joined = match variable {
        Some(DATA_VARIABLE) => data.join(parts.as_path()),
        None if first == "~" => match std::env::home_dir() {
            Some(home) => home.join(parts.as_path()),
            None => return Err(unusable("this user has no home folder; write the path out")),
        },
        Some(_) => return Err(unusable("only $CUTLAYER_DATA is expanded; write the path out")),
        None => folder.join(path),
    };
    std::path::absolute(&joined).map(|path| without_dots(&path)).map_err(|error| unusable(&error.to_string()))
}

/// Resolves `..` by name, so that saved paths read well; a link to a folder is the rare path that this changes.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &str) {
        let found = absolute(Path::new(path), Path::new("/repo/experiments"), Path::new("/data"));
        assert_eq!(found.expect("a path"), Path::new(expected), "{path}");
    }

    /// Goal: a path means the same wherever one stands. Method: relative, upwards, absolute, in the data folder.
    #[test]
    fn paths_become_absolute() {
        check("a/b.csv", "/repo/experiments/a/b.csv");
        check("../models/x", "/repo/models/x");
        check("/m", "/m");
        check("$CUTLAYER_DATA/e2e", "/data/e2e");
        check("${CUTLAYER_DATA}/e2e", "/data/e2e");
        check("~/m", &std::env::home_dir().expect("tests have a home").join("m").to_string_lossy());
    }

    /// Goal: a variable that is not expanded is no folder of that name. Method: another variable.
    #[test]
    fn other_variables_are_refused() {
        let error = absolute(Path::new("$HOME/x"), Path::new("/"), Path::new("/data")).expect_err("not ours");
        assert!(error.to_string().contains("$CUTLAYER_DATA"), "{error}");
    }
}
