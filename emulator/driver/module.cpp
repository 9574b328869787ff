// Modules: PTX in, functions out. The code of a function is the host code of the kernel of the
// same name, linked into this library.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"
#include "simt.h"

namespace {

std::set<Module*>& modules = *new std::set<Module*>;
std::set<const Function*>& functions = *new std::set<const Function*>;

// The newest PTX that a driver reads: 11.x came with 7.x, 12.0 to 12.5 with 8.0 to 8.5, then one
// ahead (12.6 kept 8.5), and 13.x with 9.x.
int newest_ptx(int driver) {
    int major = driver / 1000, minor = driver % 1000 / 10;
    if (major == 12 && minor >= 6) return 80 + minor - 1;
    return 10 * (major - 4) + minor;
}

// What a test has asked the next loads to fail with, and how many of them.
int wanted_failure = 0;
unsigned failures_left = 0;

// A changed line of a text, to see whether the tests notice: "HASH LINE TEXT" in the variable
// GFOCAL_EMULATOR_MUTANT, with the text's hash in hexadecimal.
void mutate(std::string& text) {
    const char* mutant = getenv("GFOCAL_EMULATOR_MUTANT");
    unsigned long long hash;
    int line, start = 0;
    if (!mutant || sscanf(mutant, "%llx %d %n", &hash, &line, &start) < 2 || !start) return;
    if (hash != emu::hash_of_text(text.data(), text.size())) return;
    size_t at = 0;
    for (; line > 1; --line) {
        at = text.find('\n', at);
        if (at == std::string::npos) return;
        ++at;
    }
    text.replace(at, text.find('\n', at) - at, mutant + start);
}

// What is wrong with the image: the reason goes to `why`.
Result check(const char* image, Ptx& ptx, std::string& why) {
    if (failures_left) {
        --failures_left;
        why = "a test has asked for this";
        return (Result)wanted_failure;
    }
    if (strncmp(image, "\x7f" "ELF", 4) == 0 || strncmp(image, "\x50\xed\x55\xba", 4) == 0) {
        why = "the emulator runs no machine code, only PTX";
        return NO_BINARY_FOR_GPU;
    }
    std::string problem = parse_ptx(image, ptx);
    if (!problem.empty()) {
        why = "invalid PTX: " + problem;
        return INVALID_PTX;
    }
    if (ptx.version > newest_ptx(settings().driver_version)) {
        why = "PTX " + std::to_string(ptx.version / 10) + "." + std::to_string(ptx.version % 10) +
              " is newer than driver " + std::to_string(settings().driver_version);
        return UNSUPPORTED_PTX_VERSION;
    }
    int cc = settings().compute_capability;
    if (ptx.target > cc || (ptx.exact_target && ptx.target != cc)) {
        why = "PTX for sm_" + std::to_string(ptx.target) + (ptx.exact_target ? " alone" : "") +
              " on a device of capability " + std::to_string(cc / 10) + "." + std::to_string(cc % 10);
        return NO_BINARY_FOR_GPU;
    }
    return SUCCESS;
}

Result load(Module** out, const char* image, std::string* log = nullptr) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture("cuModuleLoad")) return refused;
    if (!out || !image) return INVALID_VALUE;
    static uint64_t count = 0;
    std::unique_ptr<Module> module(new Module{call.context, {}, "", 0, ++count, {}, {}});
    if (settings().ptx && *image != '\x7f') {
        module->text = image;
        module->hash = emu::hash_of_text(module->text.data(), module->text.size());
        mutate(module->text);
        image = module->text.c_str();
    }
    std::string why;
    if (Result error = check(image, module->ptx, why)) {
        if (log) *log = why;
        return complain(error, why);
    }
    *out = module.release();
    modules.insert(*out);
    return SUCCESS;
}

// Options of cuModuleLoadDataEx, as in cuda.h.
enum Option { INFO_LOG = 3, INFO_LOG_BYTES = 4, ERROR_LOG = 5, ERROR_LOG_BYTES = 6 };

// Writes `text` to the buffer among the options, if there is one, and its length to the option of
// the buffer's size.
void write_log(const std::string& text, unsigned count, const int* options, void** values, Option buffer,
               Option bytes) {
    char* to = nullptr;
    void** size = nullptr;
    for (unsigned k = 0; k < count; ++k) {
        if (options[k] == buffer) to = (char*)values[k];
        if (options[k] == bytes) size = &values[k];
    }
    if (!to || !size) return;
    size_t room = (size_t)(unsigned)(uintptr_t)*size;
    size_t length = room ? text.copy(to, room - 1) : 0;
    if (room) to[length] = 0;
    *size = (void*)(uintptr_t)length;
}

// The host code of the kernel of the same name.
std::string find_source(const PtxEntry& entry, const emu::Kernel*& kernel) {
    kernel = emu::kernels;
    while (kernel && entry.name != kernel->name) kernel = kernel->next;
    return kernel ? "" : "the PTX has an entry point " + entry.name + ", but no kernel source has";
}

// The code that the PTX itself has. Its shared memory is also what it uses of the module's.
std::string decode(const Module& module, PtxEntry& entry, const emu::Kernel*& kernel) {
    const char* text = module.text.c_str();
    emu::EntryText source = {entry.name, module.ptx.target, module.hash, text + entry.body, entry.line,
                             entry.parameters, entry.parameter_names, {}};
    for (const Ptx::Variable& v : module.ptx.variables) source.variables.push_back({text + v.at, v.line});
    std::string problem;
    const emu::Program* program = emu::decode(source, problem);
    if (!program) return "kernel " + entry.name + " cannot be run as PTX: " + problem;
    entry.shared = emu::shared_bytes(*program);
    if (entry.shared > SHARED_PER_BLOCK)
        return "kernel " + entry.name + " has " + std::to_string(entry.shared) +
               " bytes of static shared memory, " + std::to_string(SHARED_PER_BLOCK) + " are allowed";
    kernel = emu::kernel_of(*program);
    return "";
}

// Threads and blocks that fit one multiprocessor.
int blocks_that_fit(const Function& function, int threads, size_t dynamic) {
    Limits l = limits();
    int warps = (threads + 31) / 32;
    int fit = l.blocks_per_multiprocessor;
    auto limit = [&](long n) { fit = n < fit ? (int)n : fit; };
    limit(l.threads_per_multiprocessor / 32 / warps);
    limit(REGISTERS / (long)(registers_of(function) * 32 * (unsigned)warps));
    limit(l.shared_per_multiprocessor / (long)(function.entry.shared + dynamic + 1024));
    if (threads > (int)function.entry.max_threads) fit = 0;
    return fit < 0 ? 0 : fit;
}

}  // namespace

bool is_module(const Module* module, uint64_t number) {
    return modules.count((Module*)module) && module->number == number;
}
bool is_function(const Function* function) { return functions.count(function) != 0; }

// As many as its launch bounds leave, up to what a thread can have.
unsigned registers_of(const Function& function) {
    unsigned blocks = function.entry.min_blocks ? function.entry.min_blocks : 1;
    unsigned threads = (function.entry.max_threads + 31) / 32 * 32;
    unsigned registers = REGISTERS / (blocks * (threads ? threads : 32)) / 8 * 8;
    return registers < 32 ? registers : function.entry.min_blocks && registers < 64 ? registers : 32;
}

CUDA Result cuModuleLoadData(Module** out, const void* image) { return load(out, (const char*)image); }
CUDA Result cuModuleLoadDataEx(Module** out, const void* image, unsigned count, int* options, void** values) {
    if (count && (!options || !values)) return INVALID_VALUE;
    std::string log;
    Result error = load(out, (const char*)image, &log);
    write_log(error ? "" : "gfocal emulator: nothing to say\n", count, options, values, INFO_LOG, INFO_LOG_BYTES);
    write_log(error ? "gfocal emulator: " + log : "", count, options, values, ERROR_LOG, ERROR_LOG_BYTES);
    return error;
}
CUDA Result cuModuleLoad(Module** out, const char* path) {
    if (!path) return INVALID_VALUE;
    FILE* file = fopen(path, "rb");
    if (!file) return FILE_NOT_FOUND;
    std::string text;
    char piece[4096];
    while (size_t count = fread(piece, 1, sizeof piece, file)) text.append(piece, count);
    fclose(file);
    return load(out, text.c_str());
}

CUDA Result cuModuleUnload(Module* module) {
    CALL(CURRENT);
    if (!modules.count(module)) return INVALID_HANDLE;
    if (!call.context->error && may_still_run(module))
        fault(nullptr, ILLEGAL_STATE,
              "cuModuleUnload of a module with a function that may still run: nothing has waited for its "
              "last launch");
    for (auto& entry : module->functions) functions.erase(entry.second.get());
    modules.erase(module);
    delete module;
    return (Result)call.context->error;
}

// The next `count` loads of a module fail with this code.
CUDA void gfocal_emulator_fail_loads(int error, unsigned count) {
    Call call(INITIALIZED);
    wanted_failure = error;
    failures_left = count;
}

CUDA Result cuModuleGetFunction(Function** out, Module* module, const char* name) {
    CALL(HEALTHY);
    if (!out || !name) return INVALID_VALUE;
    if (!modules.count(module)) return INVALID_HANDLE;
    std::unique_ptr<Function>& function = module->functions[name];
    if (!function) {
        for (const PtxEntry& entry : module->ptx.entries) {
            if (entry.name != name) continue;
            const emu::Kernel* kernel = nullptr;
            PtxEntry known = entry;
            const bool ptx = !module->text.empty();
            std::string problem = ptx ? decode(*module, known, kernel) : find_source(entry, kernel);
            if (!problem.empty()) {
                module->functions.erase(name);
                return ptx ? fault(nullptr, INVALID_PTX, problem) : complain(NOT_FOUND, problem);
            }
            function.reset(new Function{module, known, kernel});
            functions.insert(function.get());
        }
    }
    if (!function) {
        module->functions.erase(name);
        return NOT_FOUND;
    }
    *out = function.get();
    return SUCCESS;
}

CUDA Result cuModuleGetGlobal_v2(DevicePtr*, size_t*, Module*, const char*) { return NOT_FOUND; }

CUDA Result cuFuncGetAttribute(int* value, int attribute, Function* function) {
    CALL(CURRENT);
    if (!value) return INVALID_VALUE;
    if (!is_function(function)) return INVALID_HANDLE;
    const PtxEntry& entry = function->entry;
    switch (attribute) {
        case 0: *value = (int)entry.max_threads; break;
        case 1: *value = (int)entry.shared; break;
        case 2: case 3: *value = 0; break;  // constant and local memory
        case 4: *value = (int)registers_of(*function); break;
        case 5: *value = function->module->ptx.target; break;
        case 6: *value = settings().compute_capability; break;
        case 8: *value = function->dynamic_shared - (int)entry.shared; break;
        case 9: *value = -1; break;  // no preference for the carveout
        default:
            if (attribute < 0 || attribute > 17) return INVALID_VALUE;
            *value = 0;
    }
    return SUCCESS;
}

CUDA Result cuFuncSetAttribute(Function* function, int attribute, int value) {
    CALL(HEALTHY);
    if (!is_function(function)) return INVALID_HANDLE;
    if (attribute == 8) {
        if (value < 0 || value + (int)function->entry.shared > limits().shared_per_block_optin)
            return INVALID_VALUE;
        int total = value + (int)function->entry.shared;
        if (total > function->dynamic_shared) function->dynamic_shared = total;
        return SUCCESS;
    }
    return attribute == 9 ? SUCCESS : INVALID_VALUE;
}

CUDA Result cuFuncSetCacheConfig(Function* function, int) {
    CALL(HEALTHY);
    return is_function(function) ? SUCCESS : INVALID_HANDLE;
}

// ---- Occupancy

CUDA Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function,
                                                                 int threads, size_t dynamic,
                                                                 unsigned) {
    CALL(CURRENT);
    if (!is_function(function)) return INVALID_HANDLE;
    if (!blocks || threads <= 0) return INVALID_VALUE;
    *blocks = blocks_that_fit(*function, threads, dynamic);
    return SUCCESS;
}
CUDA Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function,
                                                        int threads, size_t dynamic) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic, 0);
}

CUDA Result cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, Function* function,
                                                      size_t (*dynamic_of)(int), size_t dynamic,
                                                      int limit, unsigned) {
    CALL(CURRENT);
    if (!is_function(function)) return INVALID_HANDLE;
    if (!grid || !block) return INVALID_VALUE;
    int most = (int)function->entry.max_threads, best = 0;
    if (limit > 0 && limit < most) most = limit;
    for (int threads = most / 32 * 32; threads >= 32; threads -= 32) {
        int fit = blocks_that_fit(*function, threads, dynamic_of ? dynamic_of(threads) : dynamic);
        if (fit * threads <= best) continue;
        best = fit * threads;
        *block = threads;
        *grid = fit * settings().multiprocessors;
    }
    return best ? SUCCESS : INVALID_VALUE;
}
CUDA Result cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* function,
                                             size_t (*dynamic_of)(int), size_t dynamic, int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, function, dynamic_of, dynamic,
                                                     limit, 0);
}

CUDA Result cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function* function, int blocks,
                                                    int) {
    CALL(CURRENT);
    if (!is_function(function)) return INVALID_HANDLE;
    if (!bytes || blocks <= 0) return INVALID_VALUE;
    long left = limits().shared_per_multiprocessor / blocks - 1024 - (long)function->entry.shared;
    long most = function->dynamic_shared - (long)function->entry.shared;
    *bytes = (size_t)(left < 0 ? 0 : left < most ? left : most);
    return SUCCESS;
}
