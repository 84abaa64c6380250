//! Synchronizes the sources in a volume with those of the run.

/// Synchronizes `/work/src`, which is in a cache volume, with `/checkout`, and changes a file's modification time only if its
/// content changed.
///
/// Cargo recompiles by modification times. Those of a checkout are meaningless (git, an archive or `touch` sets them), so cargo
/// works on this copy: unchanged files keep their time, and changed files get the current time, even if they change back. All
/// files get the current time if cargo would not notice the change: if a file was added or removed, or is neither Rust source
/// nor documentation (macros that embed directories, migrations or templates may have read it), if a symbolic link has a new
/// target, or if a synchronization was interrupted. Links are compared with a list, because saved caches contain no links.
/// The same happens if `BUILD_COMMIT`, what build scripts see of the commit, has changed: neither they nor macros declare that they
/// asked git. After any other change the build scripts in `BUILD_SCRIPTS` run again, because they may not declare everything that they read.
///
/// It is a single process whose memory does not grow with the number of files. Perl is part of every Debian.
pub(super) const SYNC: &str = r#"
use strict;
my ($from, $to) = ("/checkout", "/work/src");
my ($all, $some) = (-e "/work/unfinished", 0);
sub fail { die "cannot synchronize the sources: @_: $!\n" }
sub touch { open(my $file, ">>", $_[0]) or fail($_[0]) }
# The kind of a file: documentation, a file whose changes cargo notices by itself, or other.
sub kind {
    my $path = "./$_[0]";
    return "documentation" if $path =~ m{/(README|CHANGELOG|LICENSE)[^/]*$} or $path =~ m{^\./(docs|\.github)/};
    return "cargo" if $path =~ m{\.rs$|/Cargo\.(toml|lock)$};
    return "documentation" if $path =~ m{^\./[^/]*\.md$};
    return "other";
}
sub entries {
    opendir(my $folder, $_[0]) or fail($_[0]);
    return grep { $_ ne "." && $_ ne ".." } readdir $folder;
}
sub remove {
    my ($path) = @_;
    if (-d "$to/$path" && !-l "$to/$path") {
        remove("$path/$_") for entries("$to/$path");
        rmdir "$to/$path" or fail($path);
    } else {
        $all = 1 if kind($path) ne "documentation";
        unlink "$to/$path" or fail($path);
    }
}
sub is_same {
    my ($left, $right) = @_;
    my (@left, @right) = (stat $left);
    @right = lstat $right;
    return 0 unless @right && -f _ && $left[7] == $right[7] && ($left[2] & 0777) == ($right[2] & 0777);
    open(my $one, "<:raw", $left) or fail($left);
    open(my $two, "<:raw", $right) or fail($right);
    while (1) {
        my $read = sysread $one, my $first, 262144;
        fail($left) unless defined $read;
        my $have = 0;
        my $second = "";
        while ($have < $read) {
            my $more = sysread $two, $second, $read - $have, $have;
            fail($right) unless defined $more;
            return 0 if $more == 0;
            $have += $more;
        }
        return 1 if $read == 0;
        return 0 if $first ne $second;
    }
}
sub copy {
    my ($path) = @_;
    my ($source, $copy) = ("$from/$path", "$to/$path");
    return if is_same($source, $copy);
    my $kind = kind($path);
    if ($kind eq "other" or $kind eq "cargo" && !-e $copy) { $all = 1 } else { $some = 1 }
    my $new = "$copy.new-from-checkout";
    open(my $in, "<:raw", $source) or fail($source);
    open(my $out, ">:raw", $new) or fail($new);
    while (my $read = sysread $in, my $buffer, 262144) { print $out $buffer or fail($new) }
    close $out or fail($new);
    chmod((stat $source)[2] & 07777, $new) or fail($new);
    rename $new, $copy or fail($copy);
}
my $links = "";
sub synchronize {
    my ($below) = @_;
    my @names = sort(entries("$from/$below"));
    my %known = map { $_ => 1 } @names;
    for my $name (entries("$to/$below")) {
        remove("$below$name") unless $known{$name};
    }
    for my $name (@names) {
        my $path = "$below$name";
        my ($source, $copy) = ("$from/$path", "$to/$path");
        if (-l $source) {
            my $target = readlink $source;
            $links .= "$path\t$target\0";
            next if -l $copy && readlink($copy) eq $target;
            remove($path) if -e $copy || -l $copy;
            symlink $target, $copy or fail($copy);
        } elsif (-d _) {
            remove($path) if -l $copy || -e _ && !-d _;
            mkdir $copy unless -d $copy;
            synchronize("$path/");
        } else {
            remove($path) if -l $copy || -d _;
            copy($path);
        }
    }
}
sub touch_all {
    my ($below) = @_;
    for my $name (entries("$to/$below")) {
        my $path = "$below$name";
        if (-l "$to/$path") { next }
        if (-d _) { touch_all("$path/") } else { utime undef, undef, "$to/$path" or fail($path) }
    }
}
mkdir $to;
touch("/work/unfinished");
synchronize("");
my $before = "";
if (open(my $file, "<:raw", "/work/links")) { local $/; $before = <$file> }
$all = 1 if $links ne $before;
my ($commit, $last) = ($ENV{BUILD_COMMIT} // "", "");
if (open(my $file, "<:raw", "/work/commit")) { local $/; $last = <$file> // "" }
$all = 1 if $commit ne $last;
if ($all) { touch_all("") }
elsif ($some) { for my $script (split /\n/, $ENV{BUILD_SCRIPTS}) { utime undef, undef, "$to/$script" if -f "$to/$script" } }
open(my $list, ">:raw", "/work/links.now") or fail("/work/links.now");
print $list $links;
close $list or fail("/work/links.now");
rename "/work/links.now", "/work/links" or fail("/work/links");
if ($commit ne $last) {
    open(my $file, ">:raw", "/work/commit") or fail("/work/commit");
    print $file $commit;
    close $file or fail("/work/commit");
}
unlink "/work/unfinished";
"#;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A directory with `checkout`, and the `work` of cargo.
    struct Synced(tempfile::TempDir);

    impl Synced {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("checkout")).unwrap();
            std::fs::create_dir(folder.path().join("work")).unwrap();
            Self(folder)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            let file = self.path("checkout").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }

        /// Synchronizes after all files got an old time; returns the files with a new time, and asserts that all have the right
        /// content.
        fn run(&self) -> Vec<String> {
            self.run_at("")
        }

        /// The same, with what build scripts see of the commit.
        fn run_at(&self, commit: &str) -> Vec<String> {
            let old = SystemTime::now() - Duration::from_hours(1);
            let files = |top: &Path| -> Vec<_> {
                let entries = walkdir::WalkDir::new(top).sort_by_file_name().into_iter();
                let entries = entries.map(Result::unwrap);
                entries
                    .filter(|entry| !entry.file_type().is_dir())
                    .collect()
            };
            let to = self.path("work/src");
            if to.exists() {
                for entry in files(&to).iter().filter(|entry| !entry.path_is_symlink()) {
                    let file = std::fs::File::options()
                        .append(true)
                        .open(entry.path())
                        .unwrap();
                    file.set_modified(old).unwrap();
                }
            }
            let script = SYNC
                .replace("/checkout", self.path("checkout").to_str().unwrap())
                .replace("/work/", &format!("{}/", self.path("work").display()));
            let output = std::process::Command::new("perl")
                .args(["-we", &script])
                .env("BUILD_SCRIPTS", "build.rs\nnone/build.rs")
                .env("BUILD_COMMIT", commit)
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && stderr.is_empty(), "{stderr}");
            let all = files(&to);
            let names = |top: &Path| -> Vec<_> {
                let files = files(top).into_iter();
                files
                    .map(|it| it.path().strip_prefix(top).unwrap().to_owned())
                    .collect()
            };
            assert_eq!(names(&self.path("checkout")), names(&to));
            let mut touched = Vec::new();
            for entry in all {
                let name = entry.path().strip_prefix(&to).unwrap();
                let from = self.path("checkout").join(name);
                if entry.path_is_symlink() {
                    assert_eq!(
                        std::fs::read_link(entry.path()).unwrap(),
                        std::fs::read_link(from).unwrap()
                    );
                    continue;
                }
                assert_eq!(
                    std::fs::read(entry.path()).unwrap(),
                    std::fs::read(from).unwrap()
                );
                if entry.metadata().unwrap().modified().unwrap() > old + Duration::from_mins(1) {
                    touched.push(name.to_str().unwrap().to_owned());
                }
            }
            touched
        }
    }

    #[test]
    fn synchronizing_touches_what_cargo_must_look_at_again() {
        let synced = Synced::new();
        synced.write("Cargo.toml", "one");
        synced.write("build.rs", "one");
        synced.write("src/main.rs", "one");
        synced.write("src/build.rs", "a module");
        synced.write("README.md", "one");
        synced.write("src/page.html", "one");
        let all = [
            "Cargo.toml",
            "README.md",
            "build.rs",
            "src/build.rs",
            "src/main.rs",
            "src/page.html",
        ];
        assert_eq!(synced.run(), all);
        assert_eq!(synced.run(), [""; 0], "nothing changed");
        synced.write("README.md", "two");
        assert_eq!(synced.run(), ["README.md", "build.rs"]);
        synced.write("src/main.rs", "two");
        assert_eq!(synced.run(), ["build.rs", "src/main.rs"]);
        synced.write("src/main.rs", "TWO");
        assert_eq!(synced.run(), ["build.rs", "src/main.rs"], "the same size");
        synced.write("src/page.html", "two");
        assert_eq!(synced.run(), all, "a file that a macro may have read");
        std::fs::remove_file(synced.path("checkout/README.md")).unwrap();
        assert_eq!(synced.run(), [""; 0], "documentation goes");
        synced.write("src/new.rs", "new");
        assert_eq!(synced.run().len(), 6, "a file comes");
        std::fs::remove_file(synced.path("checkout/src/new.rs")).unwrap();
        assert_eq!(synced.run().len(), 5, "a file goes");
        std::fs::write(synced.path("work/unfinished"), "").unwrap();
        assert_eq!(synced.run().len(), 5, "an interrupted synchronization");
        assert_eq!(synced.run(), [""; 0]);
    }

    #[test]
    fn another_commit_touches_everything_if_it_is_part_of_the_build() {
        let synced = Synced::new();
        synced.write("src/main.rs", "one");
        assert_eq!(synced.run_at("a").len(), 1);
        assert_eq!(synced.run_at("a"), [""; 0]);
        assert_eq!(synced.run_at("b").len(), 1, "another commit");
        assert_eq!(synced.run_at("b"), [""; 0]);
        assert_eq!(synced.run().len(), 1, "no commit");
        assert_eq!(synced.run(), [""; 0]);
    }

    #[cfg(unix)]
    #[test]
    fn synchronizing_replaces_files_links_and_directories_by_each_other() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let synced = Synced::new();
        let entry = synced.path("checkout/entry");
        synced.write("other/file.rs", "one");
        synced.write("entry", "a file");
        synced.run();
        std::fs::remove_file(&entry).unwrap();
        symlink("other", &entry).unwrap();
        assert_eq!(synced.run(), ["other/file.rs"], "a link instead of a file");
        assert_eq!(synced.run(), [""; 0]);
        std::fs::remove_file(&entry).unwrap();
        symlink("other/file.rs", &entry).unwrap();
        assert_eq!(synced.run(), ["other/file.rs"], "another target");
        std::fs::remove_file(&entry).unwrap();
        synced.write("entry/below/file.rs", "two");
        assert_eq!(synced.run().len(), 2, "a directory instead of a link");
        std::fs::remove_dir_all(&entry).unwrap();
        synced.write("entry", "a file");
        assert_eq!(synced.run().len(), 2, "a file instead of a directory");
        std::fs::set_permissions(&entry, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(synced.run().len(), 2, "another mode");
        let mode = std::fs::metadata(synced.path("work/src/entry"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        // Saved caches have no links.
        std::fs::remove_file(&entry).unwrap();
        symlink("other", &entry).unwrap();
        synced.run();
        std::fs::remove_file(synced.path("work/src/entry")).unwrap();
        assert_eq!(synced.run(), [""; 0], "a link that a saved cache lacks");
    }
}
