# vLLM and all that it needs, from the wheels of wheels.json: a virtual environment with one
# site-packages tree, which tree.py makes, and bin/vllm. NVIDIA's libraries come in those wheels, under
# NVIDIA's terms. The driver's never do: they are looked for where NixOS has them, then as usual.
{
  lib,
  stdenv,
  addDriverRunpath,
  binutils,
  fetchPypi,
  makeWrapper,
  patchelf,
  python312,
  rdma-core,
  zlib,
  # What is pinned.
  pins ? builtins.fromJSON (builtins.readFile ../pins.json),
  wheelRows ? (builtins.fromJSON (builtins.readFile (../. + "/${pins.vllm.wheels}"))).wheels,
  patchesFolder ? ./patches,
  # Takes a row of wheels.json and returns its wheel; for an index of one's own.
  fetchWheel ? (
    row:
    fetchPypi {
      format = "wheel";
      pname = row.name;
      # A build's number stands behind the version in a wheel's name.
      version = if row ? build then "${row.version}-${row.build}" else row.version;
      # The index keeps a wheel in a folder named as the Python that it is for.
      dist = row.python;
      inherit (row)
        python
        abi
        platform
        sha256
        ;
    }
  ),
}:
let
  inherit (pins.vllm) version;
  system = stdenv.hostPlatform.system;
  rows = wheelRows.${system} or (throw "vllm: wheels.json has no wheels for ${system}");
  versions = map (row: row.version) (builtins.filter (row: row.name == "vllm") rows);
  python =
    if python312.pythonVersion == pins.vllm.python then
      python312
    else
      throw "vllm: the wheels are for Python ${pins.vllm.python}, not ${python312.pythonVersion}";
  site = "${placeholder "out"}/${python.sitePackages}";
  driver = "${addDriverRunpath.driverLink}/lib";
  # What the wheels' libraries want of a system beside its C library and the driver. What else they
  # name (FFmpeg's, MPI's, UCX's) belongs to parts that vLLM does without.
  libraries = lib.makeLibraryPath [
    stdenv.cc.cc.lib
    zlib
    rdma-core
  ];
  scripts = "${python.interpreter} ${./.}/tree.py";
in
assert
  versions == [ version ]
  || throw "vllm: pins.json has ${version}, wheels.json ${toString versions}: run nix/update-pins";
stdenv.mkDerivation {
  pname = "vllm";
  inherit version;

  wheels = map fetchWheel rows;
  dontUnpack = true;
  # Nothing in the wheels is changed but by the patches and `link`.
  dontStrip = true;
  dontPatchELF = true;
  dontPatchShebangs = true;
  noAuditTmpdir = true;

  nativeBuildInputs = [
    binutils
    makeWrapper
    patchelf
    python
  ];

  installPhase = ''
    runHook preInstall
    PYTHONWARNINGS=ignore ${scripts} build "$out" ${patchesFolder} $wheels
    ${scripts} link "$out" "$(cat "$NIX_CC/nix-support/dynamic-linker")" ${libraries}:${driver}
    runHook postInstall
  '';

  # What is compiled while serving (Triton, FlashInfer) wants a compiler, ninja and CUDA's headers, and
  # the driver's folder, for which Triton would ask ldconfig.
  postFixup = ''
    wrapProgram "$out/bin/vllm" \
      --prefix PATH : "$out/bin:${lib.makeBinPath [ stdenv.cc ]}" \
      --set-default CUDA_HOME ${site}/nvidia/cu${pins.vllm.cuda} \
      --run '[ ! -e ${driver}/libcuda.so.1 ] || export TRITON_LIBCUDA_PATH=${driver}'
  '';

  # A vLLM that does not tell which images its blocks hold is of no use here.
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    ${scripts} check ${site}
    HOME=$TMPDIR "$out/bin/python" -c '
    from vllm.distributed.kv_events import BlockStored
    assert "extra_keys" in BlockStored.__struct_fields__, BlockStored.__struct_fields__
    '
    runHook postInstallCheck
  '';

  passthru = {
    inherit python;
    pin = pins.vllm;
  };

  meta = {
    description = "vLLM from wheels, proven to tell which images its cache blocks hold";
    license = lib.licenses.asl20;
    mainProgram = "vllm";
    platforms = builtins.attrNames wheelRows;
    sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
  };
}
