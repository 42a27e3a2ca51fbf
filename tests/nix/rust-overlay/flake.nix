# What stands for rust-overlay: a compiler that is a name alone, of the channel that the file names.
{
  outputs = _: {
    lib.mkRustBin = _: pkgs: {
      fromRustupToolchainFile =
        file:
        pkgs.runCommand "rust-${(builtins.fromTOML (builtins.readFile file)).toolchain.channel}" { } "";
    };
  };
}
