# `nix build .#nixosConfigurations.appliance.config.system.build.image`: an image with nothing but the stack on it: a partition with the Nix store, read-only, a kernel image that
# names it, and a second slot for each, so that an update is written beside what runs and comes with the next
# boot; where that fails three times the old one is booted again. All that is kept is below /var.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  inherit (config.system.image) id version;
  # Of the slots of the store alone, so that neither repart nor sysupdate takes another partition for one.
  slotType = "7e7fd1a3-2c52-4a4e-8f0a-6b766c656e73";
  # vLLM with CUDA is some 10 GB.
  slot = {
    Type = slotType;
    SizeMinBytes = "16G";
    SizeMaxBytes = "16G";
  };
  efi = config.nixpkgs.hostPlatform.efiArch;
  uki = config.system.boot.loader.ukiFile;
  boot = "${pkgs.systemd}/lib/systemd/boot/efi/systemd-boot${efi}.efi";
in
{
  imports = [
    "${modulesPath}/image/repart.nix"
    "${modulesPath}/profiles/image-based-appliance.nix"
    "${modulesPath}/profiles/minimal.nix"
  ];

  options.appliance.updates = lib.mkOption {
    type = lib.types.nullOr lib.types.str;
    default = null;
    example = "http://10.0.0.1/kvlens/";
    description = ''
      Where new versions are looked for: `${id}_VERSION.efi` and `${id}_VERSION.store.raw`, with their sums
      in `SHA256SUMS`, signed by a key of `/etc/systemd/import-pubring.gpg`. Unset, none are.
    '';
  };

  config = {
    system.image = {
      id = "kvlens";
      version = lib.mkDefault "1";
    };
    system.stateVersion = "26.05";
    networking = {
      hostName = lib.mkDefault "";
      useNetworkd = true;
    };
    boot = {
      loader.grub.enable = false;
      initrd.systemd.enable = true;
      initrd.systemd.repart = {
        enable = true;
        # The disk that the image was written to.
        device = lib.mkDefault "/dev/nvme0n1";
      };
      uki.tries = 3;
      # Without a console there is nobody to ask.
      kernelParams = [ "panic=10" ];
    };

    fileSystems = {
      "/" = {
        fsType = "tmpfs";
        options = [ "mode=0755" ];
      };
      "/image" = {
        device = "/dev/disk/by-partlabel/store_${version}";
        fsType = "squashfs";
        options = [ "ro" ];
        neededForBoot = true;
      };
      "/nix/store" = {
        device = "/image/nix/store";
        fsType = "none";
        options = [ "bind" ];
        depends = [ "/image" ];
        neededForBoot = true;
      };
      "/boot" = {
        device = "/dev/disk/by-partlabel/boot";
        fsType = "vfat";
      };
      "/var" = {
        device = "/dev/disk/by-partlabel/state";
        fsType = "ext4";
        neededForBoot = true;
      };
    };

    # What is in the image.
    image.repart = {
      name = id;
      split = true;
      partitions = {
        "10-boot" = {
          contents = {
            "/EFI/BOOT/BOOT${lib.toUpper efi}.EFI".source = boot;
            "/EFI/Linux/${uki}".source = "${config.system.build.uki}/${uki}";
          };
          repartConfig = {
            Type = "esp";
            Label = "boot";
            Format = "vfat";
            # Two kernel images, each with its initrd.
            SizeMinBytes = "512M";
            SplitName = "-";
          };
        };
        "20-store" = {
          storePaths = [ config.system.build.toplevel ];
          repartConfig = {
            Type = slotType;
            Label = "store_${version}";
            Format = "squashfs";
            Minimize = "best";
            ReadOnly = "yes";
            SplitName = "store";
          };
        };
      };
    };

    # What the first boot adds on the disk that it finds itself on.
    systemd.repart.partitions = {
      "10-boot".Type = "esp";
      "20-store" = slot;
      "30-store" = slot // {
        Label = "_empty";
      };
      "40-state" = {
        Type = "linux-generic";
        Label = "state";
        Format = "ext4";
      };
    };

    systemd.sysupdate = lib.mkIf (config.appliance.updates != null) {
      enable = true;
      reboot.enable = true;
      transfers =
        let
          transfer = found: target: {
            Transfer.ProtectVersion = "%A";
            Source = {
              Type = "url-file";
              Path = config.appliance.updates;
              MatchPattern = found;
            };
            Target = target // {
              InstancesMax = 2;
            };
          };
        in
        {
          # The kernel image comes last: what it names is then there.
          "10-store" = transfer "${id}_@v.store.raw" {
            Type = "partition";
            Path = "auto";
            MatchPattern = "store_@v";
            MatchPartitionType = slotType;
            ReadOnly = 1;
          };
          "20-boot" = transfer "${id}_@v+@l.efi ${id}_@v.efi" {
            Type = "regular-file";
            Path = "/EFI/Linux";
            PathRelativeTo = "boot";
            MatchPattern = "${id}_@v+@l-@d.efi ${id}_@v+@l.efi ${id}_@v.efi";
            Mode = "0444";
            TriesLeft = 3;
            TriesDone = 0;
          };
        };
    };

    # What it serves: the folder of a model below /var, on all GPUs. A rack's own module says otherwise.
    services.kvlens = {
      enable = true;
      nvidia = true;
      openFirewall = true;
      models.model.path = lib.mkDefault "/var/lib/models/model";
      workers.gpu-0.model = lib.mkDefault "model";
      settings = {
        media.enabled = lib.mkDefault true;
        frontend.host = lib.mkDefault "0.0.0.0";
      };
    };
  };
}
