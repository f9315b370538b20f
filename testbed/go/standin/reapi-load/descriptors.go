package main

import (
	"os"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// descriptors prints the public protocols of a farm and what they import, each file behind those that it imports, as a
// FileDescriptorSet: roles/nativelink/files/reapi.binpb, which needs no compiler of protocols.
func descriptors(*servers) error {
	found := &descriptorpb.FileDescriptorSet{}
	known := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if known[file.Path()] {
			return
		}
		known[file.Path()] = true
		for index := range file.Imports().Len() {
			add(file.Imports().Get(index).FileDescriptor)
		}
		found.File = append(found.File, protodesc.ToFileDescriptorProto(file))
	}
	add(repb.File_build_bazel_remote_execution_v2_remote_execution_proto)
	add(bspb.File_google_bytestream_bytestream_proto)
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(found)
	if err == nil {
		_, err = os.Stdout.Write(content)
	}
	return err
}
