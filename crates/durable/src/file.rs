//! One file, written beside its place and renamed into it once it is on the disk.
//!
//! A crash at any moment leaves the old file or the new one under the name, never half of either.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How temporary names end.
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Bytes collected before they are handed to the system.
const BUFFER_BYTES: usize = 1 << 20;

/// A file under a temporary name that takes its own when committed, and vanishes when dropped before.
#[derive(Debug)]
pub struct DurableFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
}

impl DurableFile {
    /// The file that will become `target`, in the same folder, which must exist.
    pub fn create(target: &Path) -> io::Result<Self> {
        Self::open(target, &mut File::options())
    }

    /// The same, readable by its owner alone.
    pub fn create_private(target: &Path) -> io::Result<Self> {
        let mut options = File::options();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Self::open(target, &mut options)
    }

    fn open(target: &Path, options: &mut OpenOptions) -> io::Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // A dead process's file of this name is in nobody's way, and two living ones do not share one.
        let temporary = target.with_file_name(format!(".{name}.{}{TEMPORARY_SUFFIX}", std::process::id()));
        let file = options.read(true).write(true).create(true).truncate(true).open(&temporary)?;
        Ok(Self { target: target.into(), temporary, writer: BufWriter::with_capacity(BUFFER_BYTES, file) })
    }

    /// What was written so far, from its start: for parts that wait here until what precedes them is known.
    pub fn rewound(&mut self) -> io::Result<&File> {
        self.writer.flush()?;
        self.writer.seek(SeekFrom::Start(0))?;
        Ok(self.writer.get_ref())
    }

    /// Puts the file on the disk and gives it its name. After an error, what was under the name is still there.
    pub fn commit(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        sync_folder_of(&self.target)
    }
}

impl Write for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        // After a commit there is nothing of that name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Replaces the file at `path`, or makes it, with `bytes`: on the disk when this returns.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = DurableFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Removes the temporary files that killed processes left in `folder`, which nobody else may be writing to.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file of this name can only be one that [`DurableFile`] has not committed: `.NAME.PROCESS.tmp`.
fn is_temporary(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX));
    let process = inner.and_then(|name| name.rsplit_once('.')).map(|(_, process)| process);
    process.is_some_and(|process| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Puts the names in the folder of `path` on the disk: a rename or a removal lies there, not in the file.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    // Elsewhere than on Unix a folder cannot be opened as a file.
    if cfg!(unix) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a name holds the old file until the new one is whole. Method: look before and after the commit, and after a drop.
    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("state");
        write_durably(&target, b"old").expect("written");
        let mut file = DurableFile::create(&target).expect("made");
        file.write_all(b"new").and_then(|()| file.flush()).expect("written");
        assert_eq!(fs::read(&target).expect("there"), b"old");
        file.commit().expect("committed");
        assert_eq!(fs::read(&target).expect("there"), b"new");
        drop(DurableFile::create(&target).expect("made"));
        let names: Vec<_> = fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names, ["state"]);
    }

    /// Goal: only what a killed process left is swept. Method: leftovers beside files that look nearly like them.
    #[test]
    fn leftovers_are_told_from_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let left = [".state.123.tmp", ".a.b.1.tmp"];
        let kept = ["state", ".state.tmp", ".123.tmp", "state.123.tmp", ".state.12x.tmp", ".state.123", ".lock"];
        left.iter().chain(&kept).for_each(|name| fs::write(folder.path().join(name), name).expect("written"));
        remove_leftovers(folder.path()).expect("swept");
        assert!(left.iter().all(|name| !folder.path().join(name).exists()));
        assert!(kept.iter().all(|name| folder.path().join(name).exists()));
    }

    /// Goal: a private file is its owner's from its first byte. Method: its mode before the commit and after.
    #[cfg(unix)]
    #[test]
    fn a_private_file_is_its_owners() {
        let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("there").permissions()) & 0o777;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("secret");
        let file = DurableFile::create_private(&target).expect("made");
        assert_eq!(mode(&file.temporary), 0o600);
        file.commit().expect("committed");
        assert_eq!(mode(&target), 0o600);
    }
}
