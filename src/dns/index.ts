export {type NameInfo, type NameTable, parseNameTable} from './name-table.ts';
