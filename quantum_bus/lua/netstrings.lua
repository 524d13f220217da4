-- An entry kept elsewhere than in a stream: its names and values in turn, each as a netstring (length, colon, bytes).
-- cmsgpack is not on every server. This is put before the scripts that keep entries, and that add them again.
local function pack(values)
  local parts = {}
  for i, value in ipairs(values) do
    parts[i] = #value .. ':' .. value
  end
  return table.concat(parts)
end

local function unpacked(packed)
  local values = {}
  local at = 1
  while at <= #packed do
    local colon = string.find(packed, ':', at, true)
    local length = tonumber(string.sub(packed, at, colon - 1))
    values[#values + 1] = string.sub(packed, colon + 1, colon + length)
    at = colon + length + 1
  end
  return values
end
