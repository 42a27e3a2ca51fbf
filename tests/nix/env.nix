# What env.nix makes of pins and rows, with stand-ins for all that it takes from nixpkgs. The stand-in
# of fetchPypi takes what that takes, and gives the wheel's name in place of the wheel.
{
  environment,
  system,
  changed ? { },
}:
let
  made = import environment (
    {
      lib = {
        makeLibraryPath = packages: builtins.concatStringsSep ":" packages;
        makeBinPath = packages: "bin";
        licenses.asl20 = "asl20";
        sourceTypes.binaryNativeCode = "binary";
      };
      stdenv = {
        hostPlatform = { inherit system; };
        mkDerivation = attributes: attributes;
        cc = {
          outPath = "/cc";
          cc.lib = "/cc-lib";
        };
      };
      addDriverRunpath.driverLink = "/driver";
      binutils = "/binutils";
      makeWrapper = "/makeWrapper";
      patchelf = "/patchelf";
      rdma-core = "/rdma-core";
      zlib = "/zlib";
      python312 = {
        pythonVersion = "3.12";
        sitePackages = "lib/python3.12/site-packages";
        interpreter = "/python";
      };
      fetchPypi =
        {
          format,
          pname,
          version,
          dist,
          python,
          abi,
          platform,
          sha256,
        }:
        assert format == "wheel" && dist == python;
        "${sha256} ${pname}-${version}-${python}-${abi}-${platform}.whl";
    }
    // changed
  );
in
{
  inherit (made) version wheels;
  phases = made.installPhase + made.postFixup + made.installCheckPhase;
}
