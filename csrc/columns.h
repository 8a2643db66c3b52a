// Columns that grow while a text is read: ids, factorised as they come, and times.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fastseq {

// Large ones grow by realloc, which remaps their pages and copies nothing: the peak is the size.
template <typename T>
class GrowingArray {
  public:
    GrowingArray() = default;
    GrowingArray(const GrowingArray&) = delete;
    GrowingArray& operator=(const GrowingArray&) = delete;
    ~GrowingArray() { std::free(data_); }

    void push(T value) {
        if (size_ == capacity_) reserve(capacity_ ? 2 * capacity_ : 1024);
        data_[size_++] = value;
    }
    T* data() { return data_; }
    int64_t size() const { return size_; }

    // Gives the memory, cut to size, to the caller, who frees it with std::free.
    T* release() {
        reserve(size_ ? size_ : 1);
        T* result = data_;
        data_ = nullptr;
        size_ = capacity_ = 0;
        return result;
    }

  private:
    void reserve(int64_t capacity) {
        void* grown = std::realloc(data_, static_cast<size_t>(capacity) * sizeof(T));
        if (grown == nullptr) throw std::bad_alloc();
        data_ = static_cast<T*>(grown);
        capacity_ = capacity;
    }
    T* data_ = nullptr;
    int64_t size_ = 0, capacity_ = 0;
};

// Whether `text` is an int64 as it would be printed: no plus sign, no leading zeros, no "-0".
inline bool canonical_integer(std::string_view text, int64_t& value) {
    const char *p = text.data(), *end = p + text.size();
    const bool negative = p != end && *p == '-';
    if (negative) ++p;
    const int64_t digits = end - p;
    if (digits < 1 || digits > 19 || (*p == '0' && (digits > 1 || negative))) return false;
    uint64_t magnitude = 0;  // 19 digits fit
    for (; p != end; ++p) {
        const unsigned digit = static_cast<unsigned char>(*p) - '0';
        if (digit > 9) return false;
        magnitude = magnitude * 10 + digit;
    }
    if (magnitude > static_cast<uint64_t>(INT64_MAX) + negative) return false;
    value = static_cast<int64_t>(negative ? 0 - magnitude : magnitude);
    return true;
}

// Whether `text` is UTF-8 that can be decoded (no overlong forms, no surrogates, at most U+10FFFF) without NUL bytes.
inline bool valid_text(std::string_view text) {
    const auto* p = reinterpret_cast<const unsigned char*>(text.data());
    const auto* end = p + text.size();
    while (p != end) {
        const unsigned lead = *p++;
        if (lead == 0) return false;
        if (lead < 0x80) continue;
        const int more = lead < 0xc2 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : 0;
        if (more == 0 || end - p < more) return false;
        unsigned code = lead & (0x3fu >> more);
        for (int i = 0; i < more; ++i) {
            if ((*p & 0xc0) != 0x80) return false;
            code = code << 6 | (*p++ & 0x3f);
        }
        if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
            (more == 3 && (code < 0x10000 || code > 0x10ffff)))
            return false;
    }
    return true;
}

inline bool missing(std::string_view text) {
    return text.empty() || text == "NaN" || text == "nan" || text == "null" || text == "NULL" || text == "None";
}

// What is wrong with a field; the reader adds line and column.
struct FieldError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::string quoted(std::string_view text) {
    std::string result = "'";
    for (const char c : text.substr(0, 60)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f) {
            result += c;
        } else {
            const char* hex = "0123456789abcdef";
            result += std::string("\\x") + hex[byte >> 4] + hex[byte & 15];
        }
    }
    return result + (text.size() > 60 ? "…'" : "'");
}

// A column of ids as codes 0, 1, … in the order of first appearance. Integers as long as every id is one in canonical
// form; the first that is not turns all ids to text, which for canonical integers loses nothing.
class IdColumn {
  public:
    GrowingArray<int32_t> codes;

    void add(std::string_view field) {
        int64_t value;
        if (!text_) {
            if (canonical_integer(field, value)) return add_integer(value);
            check(field);
            become_text();
        }
        add_text(field);
    }

    void add_integer(int64_t value) {
        if (!slots_.empty() && value == last_) return codes.push(last_code_);
        if (2 * (integers_.size() + 1) > slots_.size()) rebuild(slots_.empty() ? 1024 : 2 * slots_.size());
        size_t place = integer_hash(value) & mask_;
        while (slots_[place] >= 0 && integers_[slots_[place]] != value) place = (place + 1) & mask_;
        if (slots_[place] < 0) {
            slots_[place] = next_code(integers_.size());
            integers_.push_back(value);
        }
        last_ = value;
        last_code_ = slots_[place];
        codes.push(last_code_);
    }

    bool text() const { return text_; }
    const std::vector<int64_t>& integers() const { return integers_; }
    size_t distinct() const { return text_ ? ends_.size() : integers_.size(); }
    std::string_view string(size_t code) const {
        const size_t begin = code ? ends_[code - 1] : 0;
        return {bytes_.data() + begin, ends_[code] - begin};
    }

  private:
    static void check(std::string_view field) {
        if (missing(field)) throw FieldError("the id is missing (" + quoted(field) + "); drop the line or name the id");
        if (!valid_text(field)) throw FieldError(quoted(field) + " is not UTF-8 text");
    }

    void add_text(std::string_view field) {
        if (2 * (ends_.size() + 1) > slots_.size()) rebuild(slots_.empty() ? 1024 : 2 * slots_.size());
        const size_t hash = std::hash<std::string_view>{}(field);
        size_t place = hash & mask_;
        while (slots_[place] >= 0 && string(slots_[place]) != field) place = (place + 1) & mask_;
        if (slots_[place] < 0) {
            check(field);
            slots_[place] = next_code(ends_.size());
            bytes_.append(field);
            ends_.push_back(bytes_.size());
        }
        codes.push(slots_[place]);
    }

    void become_text() {
        text_ = true;
        for (const int64_t value : integers_) {
            bytes_ += std::to_string(value);
            ends_.push_back(bytes_.size());
        }
        integers_ = {};
        rebuild(slots_.empty() ? 1024 : slots_.size());
    }

    void rebuild(size_t size) {
        slots_.assign(size, -1);
        mask_ = size - 1;
        for (size_t code = 0; code < distinct(); ++code) {
            const size_t hash = text_ ? std::hash<std::string_view>{}(string(code)) : integer_hash(integers_[code]);
            size_t place = hash & mask_;
            while (slots_[place] >= 0) place = (place + 1) & mask_;
            slots_[place] = static_cast<int32_t>(code);
        }
    }

    static size_t integer_hash(int64_t value) {
        const uint64_t mixed = static_cast<uint64_t>(value) * 0x9e3779b97f4a7c15u;
        return mixed ^ mixed >> 32;
    }

    static int32_t next_code(size_t distinct) {
        if (distinct >= INT32_MAX) throw FieldError("more than 2147483647 distinct ids");
        return static_cast<int32_t>(distinct);
    }

    bool text_ = false;
    std::vector<int64_t> integers_;  // integer ids by code
    std::string bytes_;              // text ids by code, one after the other
    std::vector<size_t> ends_;       // where each text id ends
    std::vector<int32_t> slots_;     // hash table of codes, linear probing, at most half full
    size_t mask_ = 0;
    int64_t last_ = 0;
    int32_t last_code_ = 0;
};

// Microseconds since 1970-01-01 UTC of YYYY-MM-DD[(T| )HH:MM[:SS[.f…]]][Z|±HH[[:]MM]]; digits after the sixth are
// dropped.
inline bool parse_datetime(std::string_view text, int64_t& microseconds) {
    const char *p = text.data(), *end = p + text.size();
    const auto number = [&](int digits, int& value) {
        if (end - p < digits) return false;
        value = 0;
        for (int i = 0; i < digits; ++i, ++p) {
            if (*p < '0' || *p > '9') return false;
            value = value * 10 + (*p - '0');
        }
        return true;
    };
    const auto literal = [&](char c) { return p != end && *p == c && (++p, true); };
    int year, month, day, hour = 0, minute = 0, second = 0, micro = 0, zone = 0;
    if (!number(4, year) || !literal('-') || !number(2, month) || !literal('-') || !number(2, day)) return false;
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (month < 1 || month > 12 || day < 1 || day > lengths[month - 1] + (leap && month == 2)) return false;
    if (p != end && (*p == 'T' || *p == ' ')) {
        ++p;
        if (!number(2, hour) || !literal(':') || !number(2, minute)) return false;
        if (literal(':')) {
            if (!number(2, second)) return false;
            if (literal('.')) {
                int place = 100000;
                if (p == end || *p < '0' || *p > '9') return false;
                for (; p != end && *p >= '0' && *p <= '9'; ++p, place /= 10) micro += (*p - '0') * place;
            }
        }
        if (hour > 23 || minute > 59 || second > 59) return false;
        if (p != end && (*p == '+' || *p == '-')) {
            const int sign = *p++ == '-' ? -1 : 1;
            int hours, minutes = 0;
            if (!number(2, hours)) return false;
            if (p != end && ((literal(':'), !number(2, minutes)))) return false;
            if (hours > 23 || minutes > 59) return false;
            zone = sign * (60 * hours + minutes);
        } else {
            literal('Z');
        }
    }
    if (p != end) return false;
    // Days from 1970-01-01 in the Gregorian calendar: years counted from March, so that the leap day comes last.
    const int64_t y = year - (month <= 2);
    const int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    const int64_t leaps = (y >= 0 ? y / 4 - y / 100 + y / 400 : -1);
    const int64_t days = y * 365 + leaps + of_year - 719468;
    microseconds = ((days * 24 + hour) * 60 + minute - zone) * 60000000 + int64_t(second) * 1000000 + micro;
    return true;
}

// A column of times: int64 until the first that needs float64; or all of them datetimes, as int64 microseconds.
class TimeColumn {
  public:
    void add(std::string_view field) {
        int64_t value;
        if (kind_ != Kind::datetime) {
            if (canonical_integer(field, value)) return number(value);
            double real;
            const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), real);
            if (error == std::errc() && end == field.data() + field.size() && real - real == 0) return number(real);
        }
        if (parse_datetime(field, value)) {
            if (kind_ == Kind::real || (kind_ == Kind::integer && integers_.size()))
                throw FieldError(quoted(field) + " is a datetime, the timestamps before it are numbers");
            kind_ = Kind::datetime;
            return integers_.push(value);
        }
        if (missing(field))
            throw FieldError("the timestamp is missing (" + quoted(field) + "); drop the line or fill it");
        throw FieldError(quoted(field) + (kind_ == Kind::datetime
                                              ? " is not a datetime (YYYY-MM-DD[ HH:MM[:SS]]) as those before it"
                                              : " is not a timestamp (an integer, a float, or YYYY-MM-DD[ HH:MM[:SS]])"));
    }

    bool real() const { return kind_ == Kind::real; }
    GrowingArray<int64_t>& integers() { return integers_; }
    GrowingArray<double>& reals() { return reals_; }

  private:
    enum class Kind { integer, real, datetime };

    void number(int64_t value) {
        if (kind_ == Kind::real) return reals_.push(static_cast<double>(value));
        integers_.push(value);
    }
    void number(double value) {
        if (kind_ == Kind::integer) {
            for (int64_t i = 0; i < integers_.size(); ++i) reals_.push(static_cast<double>(integers_.data()[i]));
            std::free(integers_.release());
            kind_ = Kind::real;
        }
        reals_.push(value);
    }

    Kind kind_ = Kind::integer;
    GrowingArray<int64_t> integers_;
    GrowingArray<double> reals_;
};

}  // namespace fastseq
