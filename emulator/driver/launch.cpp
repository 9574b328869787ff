// Launches: the checks that the driver makes, the copy of the arguments, and what becomes of a
// launch that went wrong.
#include <cstring>

#include "driver.h"

namespace {

// The host compiler's idea of the parameters against the PTX's: they differ if the PTX was made
// from another version of the source.
std::string compare_parameters(const Function& function) {
    if (function.kernel->program) return "";
    const auto& ptx = function.entry.parameters;
    const emu::Parameter* source = function.kernel->parameters;
    size_t count = 0;
    while (source[count].size) ++count;
    auto list = [](const emu::Parameter* p, size_t n) {
        std::string text = "(";
        for (size_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(p[i].size);
        return text + ")";
    };
    bool same = count == ptx.size();
    for (size_t i = 0; same && i < count; ++i)
        same = source[i].size == ptx[i].size && source[i].alignment == ptx[i].alignment;
    if (same) return "";
    return "kernel " + function.entry.name + ": its parameters have " +
           list(source, count) + " bytes in the source and " + list(ptx.data(), ptx.size()) +
           " bytes in the PTX, or other alignments: one of them is out of date";
}

// An address of another device in the arguments is one that the kernel cannot use.
std::string foreign_address(const Function& function, const std::vector<uint64_t>& bytes) {
    for (uint64_t word : bytes) {
        int device = device_of_address(word);
        const Allocation* a = device >= 0 ? find_allocation(word) : nullptr;
        if (a && !a->host && device != function.module->context->device)
            return "kernel " + function.entry.name + " runs on device " +
                   std::to_string(function.module->context->device) + " and was given an address of device " +
                   std::to_string(device) + ", " + describe_address(word);
    }
    return "";
}

// The arguments of a launch, copied when it is made, one after the other in 8-byte words.
struct Arguments {
    std::vector<uint64_t> words;
    std::vector<size_t> offsets;
};

Result run(const emu::Kernel* kernel, Context* context, Module* module, uint64_t number, emu::Index grid,
           emu::Index block, Arguments arguments) {
    if (context->error) return (Result)context->error;
    if (!is_module(module, number))
        return fault(context, ILLEGAL_ADDRESS, std::string("kernel ") + kernel->name +
                                                   " runs in a graph, but its module has been unloaded");
    note_launch(module, running_on());
    std::vector<void*> pointers;
    for (size_t offset : arguments.offsets) pointers.push_back(&arguments.words[offset]);
    emu::Launch launch = {kernel, pointers.data(), grid, block, next_seed(),
                          (size_t)SHARED_PER_BLOCK};
    emu::catch_signals();
    emu::Fault result = emu::execute(launch);
    if (result.error) {
        std::string what = result.access ? std::string(result.access) + " " +
                                               describe_address((uint64_t)result.address)
                                         : result.what;
        return fault(context, result.error, result.where + ": " + what);
    }
    std::string damaged = check_guards();
    if (!damaged.empty())
        return fault(context, ILLEGAL_ADDRESS, std::string("kernel ") + kernel->name + ": write " + damaged);
    return SUCCESS;
}

}  // namespace

CUDA Result cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                           void* handle, void** parameters, void** extra) {
    CALL(HEALTHY);
    if (!is_function(function)) return INVALID_HANDLE;
    FIND_STREAM(handle);
    if (function->module->context != stream->context)
        return complain(INVALID_HANDLE, "kernel " + function->entry.name +
                                            " and its stream are of different contexts");
    const std::string name = "kernel " + function->entry.name + ": ";
    uint64_t threads = (uint64_t)block_x * block_y * block_z;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffff || grid_y > 65535 ||
        grid_z > 65535 || (uint64_t)grid_x * grid_y * grid_z > 0xffffffffu)
        return complain(INVALID_VALUE, name + "no such grid: " + std::to_string(grid_x) + " x " +
                                           std::to_string(grid_y) + " x " + std::to_string(grid_z));
    if (threads == 0 || block_x > 1024 || block_y > 1024 || block_z > 64 ||
        threads > function->entry.max_threads || threads > 1024)
        return complain(INVALID_VALUE, name + std::to_string(threads) + " threads a block, of " +
                                           std::to_string(function->entry.max_threads) + " allowed");
    if (shared + function->entry.shared > (size_t)function->dynamic_shared)
        return complain(INVALID_VALUE, name + std::to_string(shared) +
                                           " bytes of dynamic shared memory are too many");
    if (extra) return complain(NOT_SUPPORTED, name + "`extra` is not emulated");
    std::string mismatch = compare_parameters(*function);
    if (!mismatch.empty()) return fault(nullptr, INVALID_SOURCE, mismatch);

    Arguments arguments;
    const auto& types = function->entry.parameters;
    if (!types.empty() && !parameters) return INVALID_VALUE;
    for (size_t i = 0; i < types.size(); ++i) {
        if (!parameters[i]) return INVALID_VALUE;
        size_t at = arguments.words.size();
        if (types[i].alignment > 8) at = (at + 1) / 2 * 2;
        arguments.words.resize(at + (types[i].size + 7) / 8);
        memcpy(&arguments.words[at], parameters[i], types[i].size);
        arguments.offsets.push_back(at);
    }
    std::string foreign = foreign_address(*function, arguments.words);
    if (!foreign.empty()) return fault(stream->context, ILLEGAL_ADDRESS, foreign);

    ++counters().launches;
    emu::Index grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
    const emu::Kernel* kernel = function->kernel;  // a graph may outlive the function
    Module* module = function->module;
    uint64_t number = module->number;
    Context* context = stream->context;
    return enqueue(stream, "kernel",
                   [=] { return run(kernel, context, module, number, grid, block, arguments); });
}

CUDA Result cuLaunchCooperativeKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned,
                                      unsigned, unsigned, void*, void**) {
    return complain(NOT_SUPPORTED, "cooperative launches are not emulated");
}
