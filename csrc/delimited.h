// Delimited text to columns in one pass.
//
// Not a kernel: branches, not arithmetic, so it is compiled once (by bindings/delimited.cpp) and not per instruction
// set.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "columns.h"

namespace fastseq {

// Takes a text in pieces of any size and fills the columns. Errors are std::invalid_argument with line and column.
class DelimitedReader {
  public:
    // separator: one or more characters, or empty for runs of spaces and tabs (then nothing is quoted).
    // names: the file's columns. Each line has exactly so many fields; empty for sequences: each line holds one user's
    // items, and the user is the line's number. user, item, time: places in names; time may be -1.
    // line: number of the first line to come.
    DelimitedReader(std::string separator, std::vector<std::string> names, int user, int item, int time, int64_t line)
        : separator_(std::move(separator)), names_(std::move(names)), user_(user), item_(item), time_(time), line_(line) {}

    IdColumn users, items;
    TimeColumn times;
    bool has_times() const { return time_ >= 0; }

    void feed(std::string_view piece) {
        pending_.append(piece);
        const size_t newline = pending_.rfind('\n');
        if (newline != std::string::npos) pending_.erase(0, parse(pending_.data(), pending_.data() + newline + 1));
        if (pending_.size() > kLongest)
            fail("a line longer than " + std::to_string(kLongest >> 20) + " MiB: is this text, are its quotes closed?");
    }

    void finish() {
        if (pending_.empty()) return;
        pending_ += '\n';
        if (parse(pending_.data(), pending_.data() + pending_.size()) != pending_.size())
            fail("a quote that is opened here is never closed");
        pending_.clear();
    }

  private:
    static constexpr size_t kLongest = size_t(1) << 28;

    [[noreturn]] void fail(const std::string& what, int column = -1) const {
        const std::string where = column < 0 ? "" : ", column '" + names_[column] + "'";
        throw std::invalid_argument("line " + std::to_string(line_) + where + ": " + what);
    }

    // Reads the complete records of [begin, end), which ends with a newline; returns how many bytes they took.
    size_t parse(const char* begin, const char* end) {
        const char* p = begin;
        while (p != end) {
            const char* next = names_.empty() ? sequence(p) : separator_.empty() ? words(p) : record(p, end);
            if (next == nullptr) break;
            p = next;
        }
        return static_cast<size_t>(p - begin);
    }

    static std::string_view trimmed(const char* begin, const char* end) {
        while (begin != end && blank(*begin)) ++begin;
        while (begin != end && blank(end[-1])) --end;
        return {begin, static_cast<size_t>(end - begin)};
    }
    static bool blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

    // The next word of a line, empty at its end.
    static std::string_view word(const char*& p) {
        while (blank(*p)) ++p;
        const char* begin = p;
        while (*p != '\n' && !blank(*p)) ++p;
        return {begin, static_cast<size_t>(p - begin)};
    }

    const char* sequence(const char* p) {
        for (std::string_view item = word(p); !item.empty(); item = word(p)) {
            try {
                items.add(item);
            } catch (const FieldError& error) {
                fail(error.what());
            }
            users.add_integer(line_);
        }
        ++line_;
        return p + 1;
    }

    const char* words(const char* p) {
        int count = 0;
        for (std::string_view field = word(p); !field.empty(); field = word(p)) keep(count++, field);
        take(count);
        ++line_;
        return p + 1;
    }

    // One record whose fields may be quoted; null where a quote is not closed before `end`.
    const char* record(const char* p, const char* end) {
        int64_t newlines = 0;
        const char first = separator_[0];
        for (int count = 0;; ++count) {
            while (*p == ' ' && first != ' ') ++p;
            if (*p == '"') {
                if (!quoted_field(p, end, count, newlines)) return nullptr;
            } else {
                const char* begin = p;
                while (*p != '\n' && !(*p == first && separated(p))) ++p;
                keep(count, trimmed(begin, p));
            }
            if (*p == '\n') {
                take(count + 1);
                line_ += newlines + 1;
                return p + 1;
            }
            p += separator_.size();
        }
    }

    bool separated(const char* p) const {
        for (size_t i = 1; i < separator_.size(); ++i)
            if (p[i] != separator_[i]) return false;
        return true;
    }

    // From an opening quote to the separator or newline after the closing one. "" is a quote; what follows the closing
    // quote belongs to the field.
    bool quoted_field(const char*& p, const char* end, int column, int64_t& newlines) {
        const int slot = column == user_ ? 0 : column == item_ ? 1 : column == time_ ? 2 : 3;
        std::string& value = unquoted_[slot];
        value.clear();
        bool inside = true;
        for (++p;; ++p) {
            if (p == end) return false;
            if (inside) {
                if (*p != '"') {
                    newlines += *p == '\n';
                    value += *p;
                } else if (p + 1 != end && p[1] == '"') {
                    value += *p++;
                } else {
                    inside = false;
                }
            } else if (*p == '\n' || (*p == separator_[0] && separated(p))) {
                break;
            } else {
                value += *p;
            }
        }
        keep(column, trimmed(value.data(), value.data() + value.size()));
        return true;
    }

    void keep(int column, std::string_view field) {
        if (column == user_) fields_[0] = field;
        if (column == item_) fields_[1] = field;
        if (column == time_) fields_[2] = field;
        if (column == 0) blank_line_ = field.empty();
    }

    // A record of `count` fields is complete.
    void take(int count) {
        const int width = static_cast<int>(names_.size());
        if (count == 0 || (count == 1 && blank_line_)) return;
        if (count != width)
            fail(std::to_string(count) + (count == 1 ? " field" : " fields") + ", expected " + std::to_string(width));
        int column = user_;
        try {
            users.add(fields_[0]);
            column = item_;
            items.add(fields_[1]);
            column = time_;
            if (column >= 0) times.add(fields_[2]);
        } catch (const FieldError& error) {
            fail(error.what(), column);
        }
    }

    const std::string separator_;
    const std::vector<std::string> names_;
    const int user_, item_, time_;
    int64_t line_;
    std::string pending_;        // the start of a record whose end has not come yet
    std::string unquoted_[4];    // quoted fields of the record without their quotes: user, item, time, any other
    std::string_view fields_[3];  // user, item, time of the record
    bool blank_line_ = false;
};

}  // namespace fastseq
