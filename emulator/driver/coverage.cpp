// Which instructions have run, by the lines of their PTX.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "simt_state.h"

namespace emu {

std::vector<const Program*> decoded_programs();

namespace {

// The lines of those that have run, or of those that have not: "12-30,35". A line that has several
// has run if all of them have.
std::string lines(const Program& program, bool ran) {
    std::string text;
    const size_t count = program.code.size() - 1;  // without the end, which has no line of its own
    for (size_t k = 0; k < count; ++k) {
        if ((program.covered[k] != 0) != ran) continue;
        size_t last = k;
        while (last + 1 < count && (program.covered[last + 1] != 0) == ran) ++last;
        text += (text.empty() ? "" : ",") + std::to_string(program.code[k].line) + "-" +
                std::to_string(program.code[last].line);
        k = last;
    }
    return text.empty() ? "none" : text;
}

std::string program_name() {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return base_name(path);
}

__attribute__((destructor)) void write() {
    const char* folder = getenv("GFOCAL_EMULATOR_COVERAGE");
    if (!folder || !*folder) return;
    std::string text;
    for (const Program* p : decoded_programs()) {
        char hash[17];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)p->hash);
        text += std::string(hash) + " " + p->name + " ran " + lines(*p, true) + " not " + lines(*p, false) + "\n";
    }
    if (text.empty()) return;
    // A file of this process alone: numbers of processes come again, and then it is added to.
    std::string path = std::string(folder) + "/" + program_name() + "-" + std::to_string(getpid()) + ".coverage";
    FILE* file = fopen(path.c_str(), "ab");
    if (!file || fwrite(text.data(), 1, text.size(), file) != text.size())
        fprintf(stderr, "gfocal emulator: %s cannot be written\n", path.c_str());
    if (file) fclose(file);
}

}  // namespace

}  // namespace emu
